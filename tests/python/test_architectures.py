"""Models of transformers with small random configurations: sparse, trained, loaded, dense again, or refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import dendnorm
from dendnorm import SparseLinear

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = SIZES | {"vocab_size": 64}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
IMAGE = SIZES | {"image_size": 16, "patch_size": 8}
WINDOWS = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2,
           "drop_path_rate": 0.0}  # fmt: skip
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_dropout": 0.0, "pooler_hidden_size": 16}
SEQUENCES = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 64,
             "dropout": 0.0}  # fmt: skip


def tokens() -> torch.Tensor:
    return torch.randint(3, 60, (2, 6))


def text() -> dict:
    return {"input_ids": tokens()}


def images() -> dict:
    return {"pixel_values": torch.randn(2, 3, 16, 16)}


def both() -> dict:
    return {"input_ids": tokens(), "decoder_input_ids": tokens()}


def speech() -> dict:
    return {"input_features": torch.randn(2, 8, 20), "decoder_input_ids": tokens()}


# The class, its configuration, inputs, how many layers are replaced, what must be skipped, what is left and why.
MODELS = {
    "BERT": ("BertForSequenceClassification", TEXT | STILL, text, 14, [], {}),
    "BERT, tied head": ("BertForMaskedLM", TEXT | STILL, text, 13, ["cls.predictions.decoder"], {}),
    "GPT-2": ("GPT2LMHeadModel", {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 64, "n_positions": 16,
                                  "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0,
                                  "eos_token_id": 0}, text, 8, ["lm_head"], {}),
    "Llama": ("LlamaForCausalLM", TEXT | {"num_key_value_heads": 2}, text, 15, [], {}),
    "GPT-NeoX": ("GPTNeoXForCausalLM", TEXT, text, 9, [], {}),
    "T5": ("T5ForConditionalGeneration", {"d_model": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2, "d_kv": 8,
                                          "vocab_size": 64, "dropout_rate": 0.0}, both, 32, ["lm_head"], {}),
    "BART": ("BartForConditionalGeneration", SEQUENCES | {"max_position_embeddings": 16}, both, 16, ["lm_head"], {}),
    "Whisper": ("WhisperForConditionalGeneration", SEQUENCES | {
        "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None,
    }, speech, 16, ["proj_out"], {}),
    "ViT": ("ViTForImageClassification", IMAGE, images, 13, [], {}),
    "BEiT": ("BeitForImageClassification", IMAGE | {"drop_path_rate": 0.0}, images, 13, [], {}),
    "Swin": ("SwinForImageClassification", WINDOWS, images, 14, [], {}),
    "Swin 2": ("Swinv2ForImageClassification", WINDOWS, images, 18, [], {}),
    "Mixtral": ("MixtralForCausalLM", TEXT | {"num_key_value_heads": 2, "num_local_experts": 3}, text, 9, [],
                {"experts": "a Parameter of MixtralExperts itself"}),
    "DeBERTa": ("DebertaForSequenceClassification", TEXT | STILL | RELATIVE, text, 12, [],
                {"in_proj": "read by DisentangledSelfAttention.forward"}),
    "DeBERTa 2": ("DebertaV2ForSequenceClassification", TEXT | STILL | RELATIVE | {"position_buckets": 8}, text, None,
                  [], {}),
    "Mamba": ("MambaForCausalLM", {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 64, "state_size": 4}, text,
              2, ["lm_head"], {"mixer.x_proj": "read by MambaMixer.forward"}),
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, dict]:
    kind, options, inputs, *_ = MODELS[name]
    maker = getattr(transformers, kind, None)
    if maker is None:
        pytest.skip(f"this transformers has no {kind}")
    torch.manual_seed(0)
    return maker(maker.config_class(**options)).eval(), inputs()


@pytest.mark.feature("transformers: BERT to Mamba by name: sparse, trained, loaded, dense again; tied weights named")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_architectures(name):
    _, _, _, layers, skip, reasons = MODELS[name]
    model, inputs = made(name)
    with torch.no_grad():
        wanted = model(**inputs).logits
    if skip:
        with pytest.raises(ValueError, match=f"must not share a weight .*add '{skip[0]}' to skip"):
            dendnorm.sparsify(model, 1.0)
    replaced = dendnorm.sparsify(model, 1.0, norm="none", skip=skip)
    assert layers is None or len(replaced) == layers, replaced
    for part, reason in reasons.items():
        assert any(part in left and reason in why for left, why in replaced.left.items()), replaced
    torch.testing.assert_close(model(**inputs).logits, wanted, rtol=1e-4, atol=1e-5)
    model.train()(**inputs).logits.square().mean().backward()
    for layer, module in model.named_modules():
        assert not isinstance(module, SparseLinear) or module.weight.grad is not None, layer
    torch.optim.AdamW(dendnorm.param_groups(model), lr=1e-2).step()
    model.eval()
    twin, _ = made(name)
    dendnorm.sparsify(twin, 1.0, norm="none", skip=skip)
    assert str(twin.load_state_dict(copy.deepcopy(model.state_dict()))) == "<All keys matched successfully>"
    with torch.no_grad():
        trained = model(**inputs).logits
        assert torch.equal(twin(**inputs).logits, trained) and not torch.allclose(trained, wanted)
        assert len(dendnorm.densify(model)) == len(replaced)
        torch.testing.assert_close(model(**inputs).logits, trained, rtol=1e-4, atol=1e-5)
