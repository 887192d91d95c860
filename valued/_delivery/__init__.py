"""How events are sent: queue, workers, retries."""
