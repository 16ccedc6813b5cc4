"""Chat templates and tokenizers in the forms that families of models use, tiny, without a model's weights or words.

A `Family` has the structure of a family's template (its control tokens, filters and tests of contents) and its kind of
tokenizer, trained here on a few lines.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, NamedTuple

import pytest

transformers = pytest.importorskip("transformers", reason="chat templates are rendered by transformers (extra `local`)")
tokenizers = pytest.importorskip("tokenizers", reason="tokenizers are trained here (extra `local`)")

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402

BAR = "\N{FULLWIDTH VERTICAL LINE}"
TEXT = [
    "The user asks a question, and the assistant gives an answer about the system.",
    "A model reads the text of a tool, then it ends its turn: im_start, im_end, think, end of turn, INST, header.",
    "<p>Some <b>bold</b> text</p> | table | a < b > c [1] {x} start end user assistant system tool documents",
] * 3


class Family(NamedTuple):
    """`kind`: of the tokenizer. `special` and `plain`: added tokens that are special, and those that are not.

    `strips`: special tokens take in the spaces after them. `normalized`: they match in normalized text.
    """

    kind: str
    special: tuple[str, ...]
    template: str
    plain: tuple[str, ...] = ()
    strips: bool = False
    normalized: bool = False


_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_THINKING = """{%- set ns = namespace(last=messages|length - 1) %}
{%- for m in messages[::-1] %}
    {%- set answer = m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>') %}
    {%- if m.role == 'user' and not answer %}
        {%- set ns.last = messages|length - loop.index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set content = m.content if m.content is string else '' %}
    {%- if m.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and thought %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
            {{- content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
_MACRO = """{%- macro shown(text) %}{{- text | trim }}{%- endmacro %}
{%- for m in messages %}
    {%- set content = shown(m.content) %}
    {%- if m.role == 'assistant' %}
        {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{- content ~ '<|im_end|>' }}{% endgeneration %}{{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' ~ m.role ~ '\\n' ~ content ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' }}{%- endif %}"""
_INST = """{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}
{% set system = messages[0]['content'] %}
{% else %}{% set rest = messages %}{% set system = false %}{% endif %}
{% for m in rest %}
{% if loop.index0 == 0 and system != false %}
{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}
{% else %}{% set content = m['content'] %}{% endif %}
{% if m['role'] == 'assistant' %}{{ ' ' + content | trim + ' ' + eos_token }}
{% else %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}{% endif %}
{% endfor %}"""
_TOOLS = """{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'tool' %}{{- '[TOOL_RESULTS] {"content": ' + m.content | tojson + '}[/TOOL_RESULTS]' }}
    {%- elif m.role == 'assistant' and m.content.startswith('[{') %}{{- '[TOOL_CALLS] ' + m.content + eos_token }}
    {%- elif m.role == 'assistant' %}{{- ' ' + m.content + eos_token }}
    {%- else %}{{- '[INST] ' + m.content + '[/INST]' }}{%- endif %}
{%- endfor %}"""
_HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n'"
    " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_TURNS = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_ROLES = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + '\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
_ZEPHYR = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>\\n' + m['content'] + eos_token }}"
    "{% else %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_GRANITE = (
    "{%- for m in messages %}{{- '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] "
    "+ '<|end_of_text|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"
)
_BARS = """{% set ns = namespace(system='') %}{% for m in messages %}{% if m['role'] == 'system' %}
{% set ns.system = ns.system + m['content'] %}{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}
{%- for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}{% endif %}
{%- if m['role'] == 'assistant' %}{% set content = m['content'] %}{% if '</think>' in content %}
{%- set content = content.split('</think>')[-1] %}{% endif %}{{ '<|Assistant|>' + content + eos_token }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}""".replace("|", BAR)
_OLMO = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|assistant|>\\n' + m['content'] "
    "+ eos_token + '\\n' }}{% else %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
_COMMAND = (
    "{{ bos_token }}{% for m in messages %}{% set content = m['content'] %}{{ '<|START_OF_TURN_TOKEN|>' }}"
    "{% if m['role'] == 'user' %}{{ '<|USER_TOKEN|>' + content.strip() }}{% elif m['role'] == 'assistant' %}"
    "{{ '<|CHATBOT_TOKEN|>' + content.strip() }}{% else %}{{ '<|SYSTEM_TOKEN|>' + content }}{% endif %}"
    "{{ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_S = ("<unk>", "<s>", "</s>")
_THINK = ("<think>", "</think>", "<tool_response>", "</tool_response>")

FAMILIES = {
    "qwen2": Family("bytes", _IM, _CHATML, ("<|fim_middle|>",)),
    "qwen3": Family("bytes", _IM, _THINKING, _THINK),
    "smollm3": Family("bytes", _IM, _MACRO, _THINK),
    "llama2": Family("prefixed", _S, _INST),
    "llama2, new form": Family("metaspace", _S, _INST),
    "llama3": Family("bytes", ("<|begin|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"), _HEADERS),
    "mistral": Family(
        "metaspace",
        ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        _TOOLS,
    ),
    "gemma": Family(
        "spaces", ("<unk>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), _TURNS, ("\n\n", "▁▁", "<b>", "</b>")
    ),
    "phi3": Family(
        "prefixed",
        ("<unk>", "<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"),
        _ROLES,
        strips=True,
    ),
    "zephyr": Family("prefixed", _S, _ZEPHYR),
    "granite": Family("bytes", ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"), _GRANITE),
    "deepseek": Family(
        "bytes",
        (f"<{BAR}begin{BAR}>", f"<{BAR}end{BAR}>"),
        _BARS,
        (f"<{BAR}User{BAR}>", f"<{BAR}Assistant{BAR}>", *_THINK[:2]),
    ),
    "olmo2": Family("bytes", ("<|endoftext|>",), _OLMO, ("  ", "    ")),
    "command": Family(
        "bytes",
        (
            "<BOS>",
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
        ),
        _COMMAND,
    ),
    "unigram": Family("unigram", (*_S, *_IM[1:]), _CHATML),
    "normalized": Family("unigram", (*_S, *_IM[1:]), _CHATML, normalized=True),
}


@cache
def tokenizer_of(name: str) -> Any:
    """The tokenizer of that family, as transformers loads it."""
    family = FAMILIES[name]
    tokenizer = _BUILDERS[family.kind](family)
    tokenizer.add_special_tokens(
        [AddedToken(text, rstrip=family.strips, normalized=family.normalized) for text in family.special]
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in family.plain])
    names = {"unk_token": "<unk>"} if "<unk>" in family.special else {}
    marks = [text for text in family.special if text != "<unk>"]
    hf = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=marks[0], eos_token=marks[1 % len(marks)], **names
    )
    hf.chat_template = family.template
    return hf


def _bytes(family: Family) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def _sentencepiece(family: Family, normalizer: Any, pre_tokenizer: Any, decoder: Any) -> Any:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, pre_tokenizer, decoder
    first = [*family.special[:3], *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=450, special_tokens=first, show_progress=False, max_token_length=8)
    )
    # The trainer adds the tokens of bytes like control tokens; models only have them in their vocabulary.
    fields = json.loads(tokenizer.to_str())
    fields["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(fields))


def _prefixed(family: Family) -> Any:
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _sentencepiece(family, normalizer, None, decoder)


def _metaspace(family: Family) -> Any:
    pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _sentencepiece(family, None, pre_tokenizer, decoder)


def _spaces(family: Family) -> Any:
    decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    split = pre_tokenizers.Split(" ", "merged_with_previous")
    return _sentencepiece(family, normalizers.Replace(" ", "▁"), split, decoder)


def _unigram(family: Family) -> Any:
    trained = Tokenizer(models.Unigram())
    trained.normalizer = normalizers.NFKC()
    trained.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first")
    trained.decoder = decoders.Metaspace("▁", prepend_scheme="first")
    letters = [chr(code) for code in range(33, 127)]
    trained.train_from_iterator(
        TEXT,
        trainers.UnigramTrainer(
            vocab_size=300,
            initial_alphabet=letters,
            unk_token="<unk>",
            special_tokens=list(family.special),
            show_progress=False,
        ),
    )
    return trained


_BUILDERS = {
    "bytes": _bytes,
    "prefixed": _prefixed,
    "metaspace": _metaspace,
    "spaces": _spaces,
    "unigram": _unigram,
}
