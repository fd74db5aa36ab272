"""Makes the fixture `sim` (simulated devices, see tools/simdev) known to every test of the repository."""

pytest_plugins = ["simdev.pytest_plugin"]
