"""Requests: connections that survive forks, addresses, the token."""
