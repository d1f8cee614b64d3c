"""Chat templates: from a conversation to token ids and the mask of what is learned.

    record --read_record--> [Message, ...] --render--> (ids, loss_mask)

A template says which text and which special tokens stand around each message. `render` is the only
writer: the call that appends ids appends their mask, so nobody ever has to search for the answer in
the ids afterwards. Training, chat and scoring all go through it. Content is encoded by itself and
can never become a special token.

    python chat_template.py data/tiny_instruct.jsonl      shows, in colour, what is trained on
"""

import functools
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from reprlib import repr as shown  # short, however large the value is

from tokenizer import END_OF_TEXT

ROLES = ("system", "user", "assistant", "tool")
TRAIN_ON = ("assistant", "last", "all")


@dataclass(frozen=True)
class Message:
    """One turn. `weight` 0 keeps it as context but does not train on it. The role "text" is a plain
    document. Raises ValueError for values out of range."""

    role: str
    content: str
    weight: int = 1

    def __post_init__(self) -> None:
        if self.role not in (*ROLES, "text"):
            raise ValueError(f"unknown role {shown(self.role)}; roles are {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            kind = type(self.content).__name__
            raise ValueError(f"the content of a {self.role} message must be text, not {kind}")
        if self.weight not in (0, 1):
            raise ValueError(f"the weight of a message must be 0 or 1, not {shown(self.weight)}")


# Templates

# An escape inside a JSON string: a short one, a surrogate pair, or any other character; half a pair
# is none.
HIGH, LOW, HEX = "[dD][89abAB][0-9a-fA-F]{2}", "[dD][c-fC-F][0-9a-fA-F]{2}", "[0-9a-fA-F]"
JSON_ESCAPE = re.compile(rf'\\(?:["\\/bfnrt]|u{HIGH}\\u{LOW}|u(?![dD][89a-fA-F]){HEX}{{4}})')
UNFINISHED_ESCAPE = re.compile(rf"\\(?:u{HEX}{{0,3}}|u{HIGH}(?:\\(?:u{HEX}{{0,3}})?)?)?$")


@dataclass(frozen=True)
class Template:
    """What stands around each message, as data.

    `before[role]` opens a message and `after[role]` closes it; `before[previous, role]` is used
    instead where it is given and `previous` (None at the start) is the role before. `begin` stands
    once, in front of everything. An assistant's content is followed by the special token `stop`,
    which the model learns to say, and then by `after["assistant"]`. Where `special_tokens` stand in
    this text they are single tokens; in content they are not.
    """

    before: dict
    after: dict[str, str]
    stop: str
    special_tokens: tuple[str, ...]
    begin: str = ""
    json_strings: bool = False  # content is written as the inside of a JSON string

    def opening(self, previous: str | None, role: str) -> str:
        return self.before.get((previous, role), self.before.get(role))

    def write(self, content: str) -> str:
        """Content as it stands in the rendered text."""
        return json.dumps(content, ensure_ascii=False)[1:-1] if self.json_strings else content

    def read(self, text: str, partial: bool = False) -> str:
        """The inverse of `write`, for what a model has generated. What is no escape stays as it is;
        of a `partial` text, an unfinished escape at the end is left out."""
        if not self.json_strings:
            return text
        blanked = JSON_ESCAPE.sub(lambda match: "." * len(match[0]), text)
        if partial and (unfinished := UNFINISHED_ESCAPE.search(blanked)):
            text = text[: unfinished.start()]
        return JSON_ESCAPE.sub(lambda match: json.loads(f'"{match[0]}"'), text)


TEMPLATES: dict[str, Template] = {
    # ChatML. All markers are special tokens, so no text can forge a turn.
    "chatml": Template(
        before={role: f"<|im_start|>{role}\n" for role in ROLES},
        after=dict.fromkeys(ROLES, "<|im_end|>\n") | {"assistant": "\n"},
        stop="<|im_end|>",
        special_tokens=("<|im_start|>", "<|im_end|>"),
    ),
    # Llama 2. [INST] is ordinary text: a user who types it can forge a turn. The form has no tools:
    # a tool's result stands in an [INST] block of its own. User turns in a row share one, a line
    # apart.
    "llama2": Template(
        before={
            "system": "<s>[INST] <<SYS>>\n",
            "user": "<s>[INST] ",
            "tool": "<s>[INST] ",
            "assistant": " [/INST] ",
            ("system", "user"): "",
            ("system", "tool"): "",
            **{(a, b): "\n" for a in ("user", "tool") for b in ("user", "tool")},
            (None, "assistant"): "<s>[INST]  [/INST] ",
            ("assistant", "assistant"): "<s>[INST]  [/INST] ",
        },
        after={"system": "\n<</SYS>>\n\n", "user": "", "assistant": "", "tool": ""},
        stop="</s>",
        special_tokens=("<s>", "</s>"),
    ),
    # Alpaca. The headings are ordinary text and can be forged.
    "alpaca": Template(
        begin="Below is an instruction that describes a task. "
        "Write a response that completes the request.\n\n",
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
    # JSON objects, one a line. The markers are ordinary text, but content is escaped and cannot
    # leave its string; the stop token stands where the answer's string ends.
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

    `train_on` "assistant" supervises the content of every assistant message and its stop token,
    "last" that of the last one only, "all" everything; messages of weight 0 never. A plain document
    (role "text") is supervised whole and ends in end-of-text. Never supervised is the first token:
    nothing stands before it from which it could be predicted. Raises ValueError where the tokenizer
    lacks the template's special tokens.
    """
    if train_on not in TRAIN_ON:
        raise ValueError(f"train_on must be one of {', '.join(TRAIN_ON)}, not {train_on!r}")
    if [message.role for message in messages] == ["text"]:
        rendering = Rendering(tokenizer)
        rendering.add_content(messages[0].content, bool(messages[0].weight))
        rendering.add([tokenizer.special(END_OF_TEXT)], bool(messages[0].weight))
    else:
        rendering = render_turns(messages, tokenizer, TEMPLATES[template], train_on)
    rendering.loss_mask[:1] = [0] * len(rendering.loss_mask[:1])
    return rendering.ids, rendering.loss_mask


def render_turns(
    messages: Sequence[Message], tokenizer, form: Template, train_on: str
) -> Rendering:
    rendering, all_text = Rendering(tokenizer, form.special_tokens), train_on == "all"
    rendering.add_markup(form.begin, all_text and any(message.weight for message in messages))
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    trained = answers[-1:] if train_on == "last" else answers
    previous = None
    for i, message in enumerate(messages):
        around = all_text and bool(message.weight)  # header and closing
        inside = (all_text or i in trained) and bool(message.weight)
        rendering.add_markup(form.opening(previous, message.role), around)
        rendering.add_content(form.write(message.content), inside)
        if message.role == "assistant":
            rendering.add([tokenizer.special(form.stop)], inside)
        rendering.add_markup(form.after[message.role], around)
        previous = message.role
    return rendering


def render_prompt(messages: Sequence[Message], tokenizer, template: str = "chatml") -> list[int]:
    """Ids that end where the assistant must begin: an exact prefix of `render` of the same messages
    and an answer."""
    form, previous = TEMPLATES[template], messages[-1].role if messages else None
    prompt = render_turns(messages, tokenizer, form, "assistant")
    prompt.add_markup(form.opening(previous, "assistant"), False)
    return prompt.ids


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
    '{"messages": [{"role", "content"}]}, {"conversations": [{"from", "value"}]}, '
    '{"instruction", "input", "output"}, {"prompt", "completion"} or {"text"}'
)


def form_of(record: dict) -> tuple[str, ...]:
    """The keys of the first form that the record has. Raises ValueError where it has none."""
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise ValueError(f"a record must be a JSON object, not {kind}; accepted: {ACCEPTED}")
    for form in FORMS:
        if all(key in record for key in form):
            return form
    found = ", ".join(record)[:160] or "(none)"
    raise ValueError(f"unknown form of record, with the keys {found}; accepted: {ACCEPTED}")


def read_record(record: dict) -> list[Message]:
    """The conversation in a record of any accepted form. Raises ValueError that says what is wrong.

    Forms: messages (with `weight` or `loss_weight`, 0 or 1, and content as text or as a list of
    text parts), ShareGPT, Alpaca, prompt and completion, plain text. A `system` text beside any of
    the first four is the system message.
    """
    messages = read_any_form(record)
    for i, message in enumerate(messages):
        if message.role == "system" and i > 0:
            was_first = messages[0].role == "system"
            found = "two system messages" if was_first else "a system message after another turn"
            raise ValueError(f"{found}: a conversation has at most one, at its start")
        try:
            message.content.encode("utf-8")
        except UnicodeEncodeError:
            what = "holds a lone surrogate, which is not Unicode text"
            raise ValueError(f"the {message.role} message {what}") from None
    if not any(message.role in ("assistant", "text") for message in messages):
        raise ValueError("a conversation without an assistant turn: there is nothing to learn from")
    return messages


def read_any_form(record: dict) -> list[Message]:
    form = form_of(record)
    if form == ("text",):
        return [Message("text", text_of(record["text"]))]
    if form in (("messages",), ("conversations",)):
        role_key, content_key = ("role", "content") if form == ("messages",) else ("from", "value")
        turns = [read_turn(turn, role_key, content_key) for turn in list_of(record, form[0])]
    else:
        question, answer = form
        parts = [text_of(record[question])]
        parts += [optional_text(record, "input")] if question == "instruction" else []
        user = Message("user", "\n\n".join(filter(None, parts)))
        turns = [user, Message("assistant", text_of(record[answer]))]
    system = optional_text(record, "system")
    return [Message("system", system), *turns] if system else turns


def optional_text(record: dict, key: str) -> str:
    return "" if record.get(key) is None else text_of(record[key])


def list_of(record: dict, key: str) -> list:
    if not isinstance(record[key], list) or not record[key]:
        raise ValueError(f'"{key}" must be a list of messages')
    return record[key]


def read_turn(turn: dict, role_key: str, content_key: str) -> Message:
    if not isinstance(turn, dict) or role_key not in turn or content_key not in turn:
        found = ", ".join(turn)[:160] if isinstance(turn, dict) else type(turn).__name__
        raise ValueError(f'a message needs "{role_key}" and "{content_key}" (found {found})')
    role, names = turn[role_key], SHAREGPT_ROLES if role_key == "from" else dict(zip(ROLES, ROLES))
    if not isinstance(role, str) or role not in names:
        raise ValueError(f"unknown role {shown(role)}; roles are {', '.join(names)}")
    weight = turn.get("weight", turn.get("loss_weight", 1))
    return Message(names[role], text_of(turn[content_key]), weight)


def text_of(content: object) -> str:
    """Content given as text, or as a list of parts like {"type": "text", "text": "..."}."""
    if isinstance(content, list):
        if all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            return "".join(part["text"] for part in content)
        form = '{"type": "text", "text": "..."}'
        raise ValueError(f"content given as a list must hold text parts, {form}")
    if not isinstance(content, str):
        raise ValueError(f"content must be text, not {type(content).__name__}")
    return content


if __name__ == "__main__":
    from runtime.show import main

    sys.exit(main())
