"""Files: atomic writes, JSON, safetensors files and Markdown tables."""
