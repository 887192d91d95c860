"""The mock server, for ``valued listen`` and for tests."""
