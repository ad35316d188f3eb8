"""Who runs next: queues, admission, preemption. Slot: policies."""
