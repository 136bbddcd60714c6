"""Load the pytest plugin of `flmm_plugin.adapters.preservation.pytest_plugin` under its earlier name."""

pytest_plugins = ["flmm_plugin.adapters.preservation.pytest_plugin"]
