"""Measurements: ours beside named peers.

Speed, with docs/performance.md as its page: `chat`, `decode`, `prefill`, `evaluate`, `scores`; made of
`measure`, `models` and `llama`, read by `report` with `goals` and the notes. For docs/results.md: `adgen`,
`load`, `tuning`.
"""
