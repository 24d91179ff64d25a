"""Names of the models that peers_models.py makes, which the tests' own environment cannot ask it for."""
FAMILIES = ('gpt2', 'gpt2_scales', 'llama', 'llama3', 'llama_linear', 'mistral', 'mistral_both', 'qwen2',
            'qwen2_window', 'qwen3', 'gemma2', 'gemma3', 'gemma3_both', 'olmo2', 'phi3', 'phi3_short', 'phi3_long',
            'gpt_neox', 'gpt_neox_serial', 'gpt_oss', 'mixtral',
            'qwen3_moe', 'qwen3_moe_plain', 'smollm3', 'deepseek', 'deepseek_plain', 'deepseek_three')
FULL = ('llama_70b', 'gemma2_27b', 'qwen3_32b', 'gpt2_xl', 'deepseek_v3')
