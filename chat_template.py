"""Chat templates: from a conversation in any usual form to token ids and the mask of what is learned.

    record --read_record--> [Message, ...] --render--> (ids, loss_mask)

A template says which text and which special tokens stand around each message. `render` is the only writer: the call
that appends ids appends their mask, so nobody ever has to search for the answer in the ids afterwards. Training,
chat and scoring all go through it. Content is encoded by itself and can never become a special token.

    python chat_template.py data/tiny_instruct.jsonl --template chatml      shows, in colour, what is trained on
"""

import argparse
import functools
import itertools
import json
import os
import re
import reprlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROLES = ("system", "user", "assistant", "tool")
TRAIN_ON = ("assistant", "last", "all")
END_OF_TEXT = "<|endoftext|>"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Message:
    """One turn. `weight` 0 keeps it as context but does not train on it. The role "text" is a plain document."""

    role: str
    content: str
    weight: int = 1

    def __post_init__(self) -> None:
        if self.role not in (*ROLES, "text"):
            raise ValueError(f"unknown role {quoted(self.role)}; roles are {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            raise ValueError(
                f"the content of a {self.role} message must be text, not {type(self.content).__name__}"
            )
        if self.weight not in (0, 1):
            raise ValueError(f"the weight of a message must be 0 or 1, not {quoted(self.weight)}")


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
    found = one_line(", ".join(record)) or "(none)"
    raise ValueError(f"unknown form of record, with the keys {found}; accepted: {ACCEPTED}")


def unused_keys(record: dict) -> set[str]:
    """The keys of a record that `read_record` does not look at."""
    form = form_of(record)
    return record.keys() - {*form, *FORMS[form]}


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
        found = one_line(", ".join(turn)) if isinstance(turn, dict) else type(turn).__name__
        raise ValueError(f'a message needs "{role_key}" and "{content_key}" (found {found})')
    role = turn[role_key]
    if role_names:
        if not isinstance(role, str) or role not in role_names:
            raise ValueError(f"unknown role {quoted(role)}; roles are {', '.join(role_names)}")
        role = role_names[role]
    if role == "text":
        raise ValueError(f"unknown role {quoted(role)}; roles are {', '.join(ROLES)}")
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


def read_raw(path: str | Path) -> Iterator[tuple[int, object]]:
    """(line, what stands there) for each record of a file: of JSON Lines the bytes of the line, so that somebody else
    can parse them (dataset.py's processes do); of one JSON array, which is read whole, the record itself.

    Raises ValueError (`file:line: reason`) for invalid UTF-8 and invalid JSON, OSError where the file cannot be read.
    """
    with open(path, "rb") as file:
        lines = (line.removeprefix(BYTE_ORDER_MARK).strip() for line in file)
        start = next(filter(None, lines), b"")
        file.seek(0)
        if start.startswith(b"["):
            yield from read_array(path, file.read())
            return
        for number, line in enumerate(file, 1):
            line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            if line.strip():
                yield number, line


def parse_raw(path: str | Path, number: int, raw: object) -> object:
    """The record in what `read_raw` gives. Raises as `read_raw`."""
    return (
        parse_json(path, number, decode_utf8(path, number, raw).strip())
        if isinstance(raw, bytes)
        else raw
    )


def read_array(path: str | Path, data: bytes) -> Iterator[tuple[int, object]]:
    text = decode_utf8(path, 1, data.removeprefix(BYTE_ORDER_MARK))
    del data
    decoder, number, counted_to, end = json.JSONDecoder(), 1, 0, text.index("[") + 1
    separator = re.compile(r"\s*")
    while True:
        end = separator.match(text, end).end()
        number, counted_to = number + text.count("\n", counted_to, end), end
        if text.startswith("]", end):
            break
        record, end = parse_json(path, number, text, functools.partial(decoder.raw_decode, idx=end))
        yield number, record
        end = separator.match(text, end).end()
        if text.startswith(",", end):
            end = separator.match(text, end + 1).end()
            if text.startswith("]", end):
                number += text.count("\n", counted_to, end)
                raise ValueError(
                    f"{path}:{number}: not valid JSON: a comma before the end of the array"
                )
        elif not text.startswith("]", end):
            number += text.count("\n", counted_to, end)
            raise ValueError(f"{path}:{number}: not valid JSON: expected , or ] after a record")
    if text[end + 1 :].strip():
        raise ValueError(f"{path}:{number}: not valid JSON: something follows the array")


def decode_utf8(path: str | Path, number: int, data: bytes) -> str:
    """The text of `data`, which begins on line `number`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        number, column = (
            number + data.count(b"\n", 0, error.start),
            error.start - 1 - data.rfind(b"\n", 0, error.start),
        )
        raise ValueError(f"{path}:{number}: not valid UTF-8 (byte {column} of the line)") from None


def parse_json(path: str | Path, number: int, text: str, parse=json.loads):
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        line = max(
            number, error.lineno
        )  # of a single line, lineno is 1; of a whole file, it counts from the top
        raise ValueError(
            f"{path}:{line}: not valid JSON: {error.msg} (column {error.colno})"
        ) from None
    except RecursionError:
        raise ValueError(f"{path}:{number}: not valid JSON: nested too deeply") from None
    except ValueError as error:  # a number of many thousand digits
        raise ValueError(f"{path}:{number}: not valid JSON: {error}") from None


def read_conversation(path: str | Path, number: int, raw: object) -> tuple[dict, list[Message]]:
    """The record and the conversation in what `read_raw` gives. Raises ValueError, `file:line: reason`."""
    record = parse_raw(path, number, raw)
    try:
        return record, read_record(record)
    except ValueError as error:
        raise ValueError(f"{path}:{number}: {error}") from None


def read_conversations(path: str | Path) -> Iterator[tuple[int, dict, list[Message]]]:
    """(line, record, conversation) for each record of a file. Raises ValueError, `file:line: reason`."""
    for number, raw in read_raw(path):
        yield number, *read_conversation(path, number, raw)


# What is trained on, made visible


def printable(text: str, keep: str = "") -> str:
    """Text for the screen: unprintable characters are escaped (but for `keep`), so that data drives no terminal."""
    return "".join(
        char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text
    )


def one_line(text: str, width: int = 160) -> str:
    """As `printable`, and no longer than a few lines of the screen."""
    return printable(text) if len(text) <= width else printable(text[:width]) + " ..."


def quoted(value: object) -> str:
    """Any value out of a file, for an error: however large or deeply nested it is, a short text."""
    return printable(reprlib.repr(value))


def escape_what_cannot_be_printed() -> None:
    """In a terminal that knows no é, and for file names that are not Unicode."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def show_mask(ids: Sequence[int], loss_mask: Sequence[int], tokenizer, colour: bool = True) -> str:
    """The tokens, supervised ones in green (without colour: in brackets), a new line after each line's end."""
    context, supervised, plain = ("\x1b[2m", "\x1b[30;42m", "\x1b[0m") if colour else ("", "[", "]")
    shown = []
    for token_id, is_supervised in zip(ids, loss_mask):
        token = tokenizer.decode_bytes([token_id]).decode("utf-8", errors="backslashreplace")
        ending = plain if colour or is_supervised else ""
        line_end = "\n" if token.endswith("\n") else "|"
        shown.append(
            f"{supervised if is_supervised else context}{printable(token)}{ending}{line_end}"
        )
    return "".join(shown)


def main(argv: Sequence[str] | None = None) -> int:
    from sft import load_checkpoint  # only this command needs a tokenizer from a checkpoint

    parser = argparse.ArgumentParser(
        description="Show conversations token by token, supervised tokens in green."
    )
    parser.add_argument("data", help="JSON Lines or JSON array of conversations")
    parser.add_argument("--template", choices=TEMPLATES, default="chatml")
    parser.add_argument("--train-on", choices=TRAIN_ON, default="assistant")
    parser.add_argument(
        "--init", default="data/base.pt", help="checkpoint whose tokenizer is used (%(default)s)"
    )
    parser.add_argument(
        "--number", type=int, default=3, help="how many conversations to show (%(default)s)"
    )
    args = parser.parse_args(argv)
    escape_what_cannot_be_printed()
    try:
        _, tokenizer, _ = load_checkpoint(args.init, "cpu")
        tokenizer = tokenizer.with_special(TEMPLATES[args.template].special_tokens)
        conversations = list(itertools.islice(read_conversations(args.data), args.number))
        if not conversations:
            raise ValueError(f"{args.data}: no record in this file")
        for line, _, messages in conversations:
            ids, loss_mask = render(messages, tokenizer, args.template, args.train_on)
            print(f"{printable(args.data)}:{line}: {len(ids)} tokens, {sum(loss_mask)} supervised")
            print(
                show_mask(ids, loss_mask, tokenizer, colour=not os.environ.get("NO_COLOR")) + "\n"
            )
    except (OSError, ValueError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
