"""Student, teacher, zero-shot head, attention that can be watched, weights in and out."""
