"""Search: many answers to one prompt, grown step by step from shared beginnings; a rule spends a budget on them."""
