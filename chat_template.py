"""Chat templates: from a conversation in any usual form to token ids and the mask of what is learned.

    record --read_record--> [Message, ...] --render--> (ids, loss_mask)

A template says which text and which special tokens stand around each message. `render` is the only writer: the call
that appends ids appends their mask, so nobody ever has to search for the answer in the ids afterwards. Training,
chat and scoring all go through it. Content is encoded by itself and can never become a special token.

    python chat_template.py data/tiny_instruct.jsonl --template chatml      shows, in colour, what is trained on
"""

import functools
import json
import re
import reprlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenizer import END_OF_TEXT

ROLES = ("system", "user", "assistant", "tool")
TRAIN_ON = ("assistant", "last", "all")


@dataclass(frozen=True)
class Message:
    """One turn. `weight` 0 keeps it as context but does not train on it. The role "text" is a plain document."""

    role: str
    content: str
    weight: int = 1

    def __post_init__(self) -> None:
        if self.role not in (*ROLES, "text"):
            raise ValueError(
                f"unknown role {reprlib.repr(self.role)}; roles are {', '.join(ROLES)}"
            )
        if not isinstance(self.content, str):
            raise ValueError(
                f"the content of a {self.role} message must be text, not {type(self.content).__name__}"
            )
        if self.weight not in (0, 1):
            raise ValueError(
                f"the weight of a message must be 0 or 1, not {reprlib.repr(self.weight)}"
            )


# Templates

# An escape inside a JSON string: a short one, a surrogate pair, or any other character; half a pair is none.
HIGH, LOW, HEX = "[dD][89abAB][0-9a-fA-F]{2}", "[dD][c-fC-F][0-9a-fA-F]{2}", "[0-9a-fA-F]"
JSON_ESCAPE = re.compile(rf'\\(?:["\\/bfnrt]|u{HIGH}\\u{LOW}|u(?![dD][89a-fA-F]){HEX}{{4}})')
UNFINISHED_ESCAPE = re.compile(rf"\\(?:u{HEX}{{0,3}}|u{HIGH}(?:\\(?:u{HEX}{{0,3}})?)?)?$")


@dataclass(frozen=True)
class Template:
    """What stands around each message, as data.

    `before[role]` opens a message and `after[role]` closes it; `before[previous, role]` is used instead where it is
    given and `previous` (None at the start) is the role before. `begin` stands once, in front of everything. An
    assistant's content is followed by the special token `stop`, which the model learns to say, and then by
    `after["assistant"]`. Where `special_tokens` stand in this text they are single tokens; in content they are not.
    """

    before: dict
    after: dict[str, str]
    stop: str
    special_tokens: tuple[str, ...]
    begin: str = ""
    json_strings: bool = (
        False  # content is written as the inside of a JSON string, and read back from it
    )

    def opening(self, previous: str | None, role: str) -> str:
        return self.before.get((previous, role), self.before.get(role))

    def write(self, content: str) -> str:
        """Content as it stands in the rendered text."""
        return json.dumps(content, ensure_ascii=False)[1:-1] if self.json_strings else content

    def read(self, text: str, partial: bool = False) -> str:
        """The inverse of `write`, for what a model has generated. What is no escape stays as it is; of a `partial`
        text, an unfinished escape at the end is left out."""
        if not self.json_strings:
            return text
        unfinished = UNFINISHED_ESCAPE.search(
            JSON_ESCAPE.sub(lambda match: "." * len(match[0]), text)
        )
        if partial and unfinished:
            text = text[: unfinished.start()]
        return JSON_ESCAPE.sub(lambda match: json.loads(f'"{match[0]}"'), text)


TEMPLATES: dict[str, Template] = {
    # ChatML. All markers are special tokens, so no text can forge a turn.
    "chatml": Template(
        before={role: f"<|im_start|>{role}\n" for role in ROLES},
        after={
            "system": "<|im_end|>\n",
            "user": "<|im_end|>\n",
            "assistant": "\n",
            "tool": "<|im_end|>\n",
        },
        stop="<|im_end|>",
        special_tokens=("<|im_start|>", "<|im_end|>"),
    ),
    # Llama 2. [INST] is ordinary text: a user who types it can forge a turn. The form has no tools: a tool's result
    # stands in an [INST] block of its own. User turns in a row share one block, a line apart.
    "llama2": Template(
        before={
            "system": "<s>[INST] <<SYS>>\n",
            "user": "<s>[INST] ",
            "tool": "<s>[INST] ",
            "assistant": " [/INST] ",
            ("system", "user"): "",
            ("system", "tool"): "",
            **{
                (earlier, later): "\n" for earlier in ("user", "tool") for later in ("user", "tool")
            },
            (None, "assistant"): "<s>[INST]  [/INST] ",
            ("assistant", "assistant"): "<s>[INST]  [/INST] ",
        },
        after={"system": "\n<</SYS>>\n\n", "user": "", "assistant": "", "tool": ""},
        stop="</s>",
        special_tokens=("<s>", "</s>"),
    ),
    # Alpaca. The headings are ordinary text and can be forged.
    "alpaca": Template(
        begin="Below is an instruction that describes a task. Write a response that completes the request.\n\n",
        before={
            "system": "### System:\n",
            "user": "### Instruction:\n",
            "assistant": "### Response:\n",
            "tool": "### Tool:\n",
        },
        after=dict.fromkeys(ROLES, "\n\n"),
        stop=END_OF_TEXT,
        special_tokens=(END_OF_TEXT,),
    ),
    # XML tags. They are ordinary text, content is not escaped, and so they can be forged.
    "xml": Template(
        before={role: f"<{role}>\n" for role in ROLES},
        after={role: f"\n</{role}>\n" for role in ROLES},
        stop=END_OF_TEXT,
        special_tokens=(END_OF_TEXT,),
    ),
    # JSON objects, one a line. The markers are ordinary text, but content is escaped and cannot leave its string; the
    # stop token stands where the answer's string ends.
    "json": Template(
        before={role: f'{{"role": "{role}", "content": "' for role in ROLES},
        after=dict.fromkeys(ROLES, '"}\n'),
        stop=END_OF_TEXT,
        special_tokens=(END_OF_TEXT,),
        json_strings=True,
    ),
}


# Rendering


@dataclass
class Rendering:
    """Ids and their loss mask, which only ever grow together."""

    tokenizer: object
    special_tokens: tuple[str, ...] = ()
    ids: list[int] = field(default_factory=list)
    loss_mask: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int], supervised: bool) -> None:
        self.ids += ids
        self.loss_mask += [int(supervised)] * len(ids)

    def add_content(self, text: str, supervised: bool) -> None:
        """Text from outside: never a special token."""
        self.add(self.tokenizer.encode(text), supervised)

    def add_markup(self, markup: str, supervised: bool) -> None:
        """A template's own text, in which the template's special tokens are meant."""
        self.add(markup_ids(markup, self.special_tokens, self.tokenizer), supervised)


@functools.lru_cache(maxsize=256)  # of a million conversations all have the same few headers
def markup_ids(markup: str, special_tokens: tuple[str, ...], tokenizer) -> tuple[int, ...]:
    names = "|".join(re.escape(name) for name in special_tokens)
    ids: list[int] = []
    for part in re.split(f"({names})", markup):
        ids += [tokenizer.special(part)] if part in special_tokens else tokenizer.encode(part)
    return tuple(ids)


def render(
    messages: Sequence[Message], tokenizer, template: str = "chatml", train_on: str = "assistant"
) -> tuple[list[int], list[int]]:
    """Token ids and loss mask of a conversation; the mask is 1 where the token is supervised.

    `train_on` "assistant" supervises the content of every assistant message and its stop token, "last" that of the last
    one only, "all" everything but the first token; messages of weight 0 never. A plain document (role "text") is
    supervised whole and ends in end-of-text. Raises ValueError where the tokenizer lacks the template's special tokens.
    """
    if [message.role for message in messages] == ["text"]:
        rendering = Rendering(tokenizer)
        rendering.add_content(messages[0].content, supervised=bool(messages[0].weight))
        rendering.add([tokenizer.special(END_OF_TEXT)], supervised=bool(messages[0].weight))
        return rendering.ids, rendering.loss_mask
    if train_on not in TRAIN_ON:
        raise ValueError(f"train_on must be one of {', '.join(TRAIN_ON)}, not {train_on!r}")
    form = TEMPLATES[template]
    rendering = Rendering(tokenizer, form.special_tokens)
    rendering.add_markup(
        form.begin, supervised=train_on == "all" and any(message.weight for message in messages)
    )
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)
    previous = None
    for i, message in enumerate(messages):
        is_answer = message.role == "assistant"
        around = bool(message.weight) and train_on == "all"  # headers and closings
        inside = bool(message.weight) and (
            train_on == "all" or (is_answer and (train_on == "assistant" or i == last))
        )
        rendering.add_markup(form.opening(previous, message.role), around)
        rendering.add_content(form.write(message.content), inside)
        if is_answer:
            rendering.add([tokenizer.special(form.stop)], inside)
        rendering.add_markup(form.after[message.role], around)
        previous = message.role
    if train_on == "all":
        rendering.loss_mask[0] = (
            0  # nothing stands before the first token, from which it could be predicted
        )
    return rendering.ids, rendering.loss_mask


def render_prompt(messages: Sequence[Message], tokenizer, template: str = "chatml") -> list[int]:
    """Ids that end where the assistant must begin: an exact prefix of `render` of the same messages and an answer."""
    ids, _ = render(messages, tokenizer, template)
    form = TEMPLATES[template]
    opening = Rendering(tokenizer, form.special_tokens)
    opening.add_markup(
        form.opening(messages[-1].role if messages else None, "assistant"), supervised=False
    )
    return ids + opening.ids


# Reading records

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
FORMS = {  # the keys that make a form: those that may stand beside them
    ("messages",): ("system",),
    ("conversations",): ("system",),
    ("instruction", "output"): ("input", "system"),
    ("prompt", "completion"): ("system",),
    ("text",): (),
}
ACCEPTED = (
    '{"messages": [{"role", "content"}]}, {"conversations": [{"from", "value"}]}, {"instruction", "input", "output"}, '
    '{"prompt", "completion"} or {"text"}'
)


def form_of(record: dict) -> tuple[str, ...]:
    """The keys of the first form that the record has. Raises ValueError where it has none."""
    if not isinstance(record, dict):
        raise ValueError(
            f"a record must be a JSON object, not {type(record).__name__}; accepted: {ACCEPTED}"
        )
    for form in FORMS:
        if all(key in record for key in form):
            return form
    found = ", ".join(record)[:160] or "(none)"
    raise ValueError(f"unknown form of record, with the keys {found}; accepted: {ACCEPTED}")


def read_record(record: dict) -> list[Message]:
    """The conversation in a record of any accepted form. Raises ValueError that says what is wrong with it.

    Forms: messages (with `weight` or `loss_weight`, 0 or 1, and content as text or as a list of text parts), ShareGPT,
    Alpaca, prompt and completion, plain text. A `system` text beside any of the first four is the system message.
    """
    messages = read_any_form(record)
    for i, message in enumerate(messages):
        if message.role == "system" and i > 0:
            another = (
                "two system messages"
                if messages[0].role == "system"
                else "a system message after another turn"
            )
            raise ValueError(f"{another}: a conversation has at most one, at its start")
        try:
            message.content.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(
                f"the {message.role} message holds a lone surrogate, which is not Unicode text"
            ) from None
    if not any(message.role in ("assistant", "text") for message in messages):
        raise ValueError("a conversation without an assistant turn: there is nothing to learn from")
    return messages


def read_any_form(record: dict) -> list[Message]:
    form = form_of(record)
    if form == ("text",):
        return [Message("text", text_of(record["text"]))]
    if form == ("messages",):
        turns = [read_turn(turn, "role", "content", None) for turn in list_of(record, "messages")]
    elif form == ("conversations",):
        turns = [
            read_turn(turn, "from", "value", SHAREGPT_ROLES)
            for turn in list_of(record, "conversations")
        ]
    else:
        question, answer = form
        parts = [
            text_of(record[question]),
            optional_text(record, "input") if question == "instruction" else "",
        ]
        turns = [
            Message("user", "\n\n".join(filter(None, parts))),
            Message("assistant", text_of(record[answer])),
        ]
    system = optional_text(record, "system")
    return [Message("system", system), *turns] if system else turns


def optional_text(record: dict, key: str) -> str:
    return "" if record.get(key) is None else text_of(record[key])


def list_of(record: dict, key: str) -> list:
    if not isinstance(record[key], list) or not record[key]:
        raise ValueError(f'"{key}" must be a list of messages')
    return record[key]


def read_turn(
    turn: dict, role_key: str, content_key: str, role_names: dict[str, str] | None
) -> Message:
    if not isinstance(turn, dict) or role_key not in turn or content_key not in turn:
        found = ", ".join(turn)[:160] if isinstance(turn, dict) else type(turn).__name__
        raise ValueError(f'a message needs "{role_key}" and "{content_key}" (found {found})')
    role = turn[role_key]
    if role_names:
        if not isinstance(role, str) or role not in role_names:
            raise ValueError(
                f"unknown role {reprlib.repr(role)}; roles are {', '.join(role_names)}"
            )
        role = role_names[role]
    if role == "text":
        raise ValueError(f"unknown role {reprlib.repr(role)}; roles are {', '.join(ROLES)}")
    return Message(role, text_of(turn[content_key]), turn.get("weight", turn.get("loss_weight", 1)))


def text_of(content: object) -> str:
    """Content given as text, or as a list of parts like {"type": "text", "text": "..."}."""
    if isinstance(content, list):
        if all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            return "".join(part["text"] for part in content)
        raise ValueError(
            'content given as a list must hold text parts, {"type": "text", "text": "..."}'
        )
    if not isinstance(content, str):
        raise ValueError(f"content must be text, not {type(content).__name__}")
    return content


if __name__ == "__main__":
    from runtime.show import main

    sys.exit(main())
