"""ViP-LLaVA for flmm-plugin: one view per picture, 24 x 24 image tokens in reading order."""

from flmm_plugin.backbones.base import Backbone
from flmm_plugin.backbones.llava import follow_processor
from flmm_plugin.backbones.views import Layout, place


class VipLlavaBackbone(Backbone):
    """``VipLlavaForConditionalGeneration`` with the image processor it came with."""

    family = "vipllava"

    def image_tokens(self, inputs, images):
        """Where the image tokens of each picture are, and how they lie on it."""
        layouts = [[Layout.raster(self.grid(picture)) for picture in pictures] for pictures in images]
        return place(inputs["input_ids"] == self.image_token_id, layouts, self.name)

    def grid(self, picture):
        """The token grid on a picture: what the processor did to it, cut into patches."""
        frame = follow_processor(self.processor.image_processor, picture.height, picture.width)
        return frame.grid(self.model.config.vision_config.patch_size)
