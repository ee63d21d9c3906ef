"""Facts about families of networks and the names of fields in a `config.json`, listed by hand."""

import re

# Every reading of the residual stream passes through a LayerNorm here, so the mean of a prompt vector is invisible.
LAYER_NORM = {"gpt2", "gpt_neo", "gptj", "gpt_neox", "gpt_bigcode", "codegen", "opt", "bloom", "phi", "falcon",
              "starcoder2", "stablelm", "bert"}  # fmt: skip
LEARNED = {"gpt2", "gpt_neo", "gpt_bigcode", "opt", "bert"}
ROTARY = {"gptj", "codegen", "gpt_neox", "llama", "mistral", "qwen2", "gemma", "phi"}
# Without `transformers`; with it, its lists of classes decide.
ENCODERS = {"albert", "bert", "big_bird", "bros", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2",
            "distilbert", "electra", "ernie", "esm", "esmc", "eurobert", "flaubert", "gte", "ibert",
            "jina_embeddings_v3", "layoutlm", "longformer", "megatron-bert", "mobilebert", "modernbert", "mpnet",
            "nomic_bert", "nystromformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
            "tapas", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod"}  # fmt: skip
FACTORED = {"albert", "convbert", "electra", "mobilebert", "roformer"}  # embedding_size is the width of a token here
WITHOUT_SOFTMAX = re.compile(r"rwkv|retnet|hgrn|delta_?net|xlstm|mamba|hyena|lightning|recurrent|griffin|^s4|^ttt")
WITHOUT_SOFTMAX_NAMES = {"gla", "abc", "gsa", "based", "rebased", "linear_attn", "lfm2_first", "samba", "comba"}
NOT_BY_FIELDS = {"blt", "longcat_flash"}  # several stacks, or several attentions a layer
# The weight of a position is not a softmax of its own logit among all that are seen, or was not looked at.
OTHER_ATTENTION = {"axk2", "beam", "big_bird", "bigbird_pegasus", "deepseek_v32", "deepseek_v4", "diffllama", "doge",
                   "dots3_note", "dots3_note_text", "flint", "glm_moe_dsa", "hy_v4", "inkling2_text", "inkling_text",
                   "kolibri1", "laguna", "longformer", "minimax_m3_vl_text", "qwen4_exp", "qwen4_exp_text", "reformer",
                   "xlnet", "zaya"}  # fmt: skip

# Names of classes in `architectures`: networks whose tokens see later ones, and networks that write.
SEES_LATER_NAME = re.compile(r"MaskedLM|Encoder|Bidirectional|Bi(Model|For|Forward)|BertModel$")
WRITES_NAME = re.compile(r"CausalLM|LMHead|ConditionalGeneration")

FIELDS = {  # of a config.json, in the order in which they count
    "hidden": ("hidden_size", "n_embd", "n_embed", "d_model", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "vocabulary": ("vocab_size", "padded_vocab_size", "n_vocab"),
    "context": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length",
                "model_max_length"),
    "head": ("head_dim", "kv_channels", "attention_head_dim", "dim_head"),
    "kv": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", "num_attention_groups", "num_query_groups",
           "kv_n_heads"),
    "norm_eps": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps",
                 "layernorm_epsilon"),
}  # fmt: skip
SIZES = ("hidden", "layers", "heads", "vocabulary")
NOT_SOFTMAX = ("ssm_", "mamba_", "linear_", "lru_", "attn_layer_period", "state_size", "block_types", "full_attn_idxs",
               "attn_type_list", "expand_k", "expand_v", "attn_layer_idx", "hybrid_override_pattern")  # fmt: skip

# Names that could change a cache, and those of them that are understood or change none.
CACHE_NAME = re.compile(
    r"head|kv|key|quer|attn|attention|group|lora|latent|share|cross|layer_type|pattern|state_|ssm|conv|recurr|decay|"
    r"block|memory|window|sliding|chunk|sparse|topk|index|local|decoder_layers|encoder_layers|num_blocks|per_layer"
)
PATTERN_NAME = re.compile(r"window|sliding|chunk|sparse|topk|index|local|dense_attention|log_?n_attn")
HARMLESS = re.compile(
    r"dropout|pdrop|bias|flash|fp32|implementation|_impl$|_init|norm|scal|clip|token|label|monkey|precision|dtype|"
    r"lm_head|sdpa|base_freq|is_decoder|add_cross_attention|cross_attention_hidden_size|chunk_size_feed_forward|"
    r"block_type$|block_group_size|cache_kernel|n_group|topk_group|topk_method|multiplier|pad_key|allocate|"
    r"parallel_attn|cache_quant|moe|expert|router|softcap|query_pre_attn_scalar|keys_to_ignore"
)
UNDERSTOOD = {"multi_query", "multi_query_attention", "multi_query_group_num", "new_decoder_architecture",
              "attn_config",
              "v_head_dim", "q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "qk_head_dim",
              "layer_types", "sliding_window", "use_sliding_window", "max_window_layers", "attention_chunk_size",
              "window_size", "attention_layers", "attention_types", "use_logn_attn", "sliding_window_pattern",
              "_sliding_window_pattern", "parallel_attn", "parallel_attention", "use_bidirectional_attention",
              "multiple_of", "num_kv_shared_layers"}  # fmt: skip
UNDERSTOOD |= {field for fields in FIELDS.values() for field in fields}
ATTENTION_CONFIG = {"attn_type", "kv_n_heads", "alibi", "alibi_bias_max", "prefix_lm", "model_type",
                    "sliding_window_size",
                    "attn_uses_sequence_id", "rope", "rope_theta", "rope_impl"}  # fmt: skip
