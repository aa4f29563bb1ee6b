"""How a conversation becomes tokens, and which of them are trained on.

With role tokens: <|user|>question<|end|><|assistant|>answer<|end|>. A tokenizer without them, such as GPT-2's 50,257
tokens, gets plain markers: "User: question\\nAssistant: answer<|endoftext|>".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llm_core.data.bpe import ASSISTANT, END, TURN_END, Tokenizer

Message = Mapping[str, str]


def encode(messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(ids, mask) of a conversation; the mask is 1 on the assistant's words and the token that ends them."""
    ids: list[int] = []
    mask: list[int] = []
    for message in messages:
        opening, body = _turn(message, tokenizer)
        ids += opening + body
        mask += [0] * len(opening) + [int(message["role"] == "assistant")] * len(body)
    return ids, mask


def encode_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Ids of a conversation up to where the assistant's next answer begins."""
    opening, _ = _turn({"role": "assistant", "content": ""}, tokenizer)
    return encode(messages, tokenizer)[0] + opening


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end an answer."""
    return frozenset(tokenizer.specials[name] for name in (TURN_END, END) if name in tokenizer.specials)


def _turn(message: Message, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(ids that open a turn, ids of what is said with the token that ends it)."""
    role, content = message["role"], message["content"]
    if ASSISTANT in tokenizer.specials:
        return [tokenizer.specials[f"<|{role}|>"]], [*tokenizer.encode(content), tokenizer.specials[TURN_END]]
    opening = tokenizer.encode(f"{role.capitalize()}:")
    if role == "assistant":
        return opening, [*tokenizer.encode(f" {content}"), tokenizer.end_id]
    return opening, tokenizer.encode(f" {content}\n")
