"""Other clients: in the rows of the table, and in situations that go wrong."""
