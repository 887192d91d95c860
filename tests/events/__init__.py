"""What is sent: any input, checked and serialized, or an error that names its place."""
