"""``valued doctor``: checks what a client needs, and says what to do about what is missing."""
