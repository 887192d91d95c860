"""HTTP by `requests`: the token, the endpoint, and connections that are safe to fork."""
