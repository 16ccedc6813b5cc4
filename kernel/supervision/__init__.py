"""Supervision: who learns of an end, who shares it, and who is started again."""
