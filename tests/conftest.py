"""What every test shares."""

from hypothesis import settings

# A deadline measures the machine's load, not the code.
settings.register_profile("llmcli", deadline=None)
settings.load_profile("llmcli")
