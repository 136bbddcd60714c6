"""VLMEvalKit: models and data sets of the plugin, registered in a kit that has no place for plugins."""
