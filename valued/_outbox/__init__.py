"""Events that outlive their process: files, owners, and who takes over."""
