"""Chat templates: from a conversation to token ids and the mask of what is learned.

    record --read_record--> [Message, ...] --render--> (ids, loss_mask)

`render` is the only writer: the call that appends ids appends their mask, so nobody has to search
for the answer in the ids afterwards. Content is encoded by itself and never a special token.

    python chat_template.py data/tiny_instruct.jsonl      shows, in colour, what is trained on
"""

import contextlib
import functools
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from reprlib import repr as shown  # short, however large the value is

from tokenizer import END_OF_TEXT, check_unicode

ROLES = ("system", "user", "assistant", "tool")
TRAIN_ON = ("assistant", "last", "all")


@dataclass(frozen=True)
class Message:
    """One turn. `weight`, 0 to 1, is that of its loss; with 0 it is context only. An answer may
    have `reasoning` before its content and `tool_calls` after it, a system message `tools`, each of
    them a JSON object's text. The role "text" is a plain document. Raises ValueError for what is
    none of this."""

    role: str
    content: str
    weight: float = 1
    reasoning: str = ""
    tool_calls: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in (*ROLES, "text"):
            raise ValueError(f"unknown role {shown(self.role)}; roles are {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            raise ValueError(f"content must be text, not {type(self.content).__name__}")
        check_weight("weight", self.weight)
        if self.role != "assistant" and (self.reasoning or self.tool_calls):
            raise ValueError(f"a {self.role} message with reasoning or tool calls")


def check_weight(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"the {name} of a message must be from 0 to 1, not {shown(value)}")


# Templates

# In the form of Qwen and Hermes.
TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n%s\n"
    "</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


@dataclass(frozen=True)
class Template:
    """What stands around each message.

    `before[role]` opens a message and `after[role]` closes it; `before[previous, role]` is used
    instead where it is given and `previous` (None at the start) is the role before. `begin` stands
    in front of everything. An assistant's content is followed by the special token `stop`, which
    the model learns to say, and then by `after["assistant"]`. `special_tokens` in this text are
    single tokens; in content they are not. `tools`, `tool_call` and `reasoning` are the forms of
    what a message says beside its content.
    """

    before: dict
    after: dict[str, str]
    stop: str = END_OF_TEXT
    special_tokens: tuple[str, ...] = (END_OF_TEXT,)
    begin: str = ""
    json_strings: bool = False  # content is written as the inside of a JSON string
    trim: bool = False  # content is written without white space at its ends
    system: str = ""  # told where a conversation has no system message
    tools: str = TOOLS
    tool_call: str = "<tool_call>\n%s\n</tool_call>"
    reasoning: str = "<think>\n%s\n</think>\n\n"

    def opening(self, previous: str | None, role: str) -> str:
        return self.before.get((previous, role), self.before.get(role))

    def text(self, message: Message) -> str:
        """All that a message says: its reasoning, its content, tool calls and tools."""
        thoughts = self.reasoning % message.reasoning if message.reasoning else ""
        parts = [message.content, *(self.tool_call % call for call in message.tool_calls)]
        text = thoughts + "\n".join(filter(None, parts))
        tools = self.tools % "\n".join(message.tools) if message.tools else ""
        return "\n\n".join(filter(None, (text, tools)))

    def write(self, content: str) -> str:
        """Content as it stands in the rendered text."""
        content = content.strip() if self.trim else content
        return json.dumps(content, ensure_ascii=False)[1:-1] if self.json_strings else content

    def read(self, text: str) -> str:
        """The inverse of `write`, for what a model has generated; no JSON is given as it is."""
        if self.json_strings:
            with contextlib.suppress(ValueError):  # half a surrogate pair is none, too
                return json.loads(f'"{text}"', strict=False).encode().decode()
        return text


CHATML = Template(
    before={role: f"<|im_start|>{role}\n" for role in ROLES},
    after=dict.fromkeys(ROLES, "<|im_end|>\n") | {"assistant": "\n"},
    stop="<|im_end|>",
    special_tokens=("<|im_start|>", "<|im_end|>"),
)
SMOLLM2 = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QWEN2_5 = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
HEADERS = ("<|start_header_id|>", "<|end_header_id|>")  # Llama 3's
TEMPLATES: dict[str, Template] = {
    # In ChatML and Llama 3's, markers are special tokens: no text can forge one.
    "chatml": CHATML,
    "smollm2": replace(CHATML, system=SMOLLM2),
    "qwen2.5": replace(  # results of tools in a row share a user's turn
        CHATML,
        system=QWEN2_5,
        before=CHATML.before
        | {"tool": "<|im_start|>user\n<tool_response>\n", ("tool", "tool"): "\n<tool_response>\n"}
        | {("tool", role): f"<|im_end|>\n<|im_start|>{role}\n" for role in ROLES[1:3]},
        after=CHATML.after | {"tool": "\n</tool_response>"},
    ),
    "llama3": Template(
        begin="<|begin_of_text|>",
        before={role: f"{HEADERS[0]}{role}{HEADERS[1]}\n\n" for role in ROLES},
        after=dict.fromkeys(ROLES, "<|eot_id|>") | {"assistant": ""},
        stop="<|eot_id|>",
        special_tokens=("<|begin_of_text|>", *HEADERS, "<|eot_id|>"),
        trim=True,
    ),
    # [INST] is ordinary text: a user who types it can forge a turn. A tool's result stands in a
    # block of its own, user turns in a row share one.
    "llama2": Template(
        before={
            "system": "<s>[INST] <<SYS>>\n",
            **dict.fromkeys(("user", "tool"), "<s>[INST] "),
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
    # The headings are text and can be forged.
    "alpaca": Template(
        begin="Below is an instruction that describes a task. "
        "Write a response that completes the request.\n\n",
        before={"system": "### System:\n", "user": "### Instruction:\n"}
        | {"assistant": "### Response:\n", "tool": "### Tool:\n"},
        after=dict.fromkeys(ROLES, "\n\n"),
    ),
    # The tags are text and can be forged.
    "xml": Template(
        before={role: f"<{role}>\n" for role in ROLES},
        after={role: f"\n</{role}>\n" for role in ROLES},
    ),
    # JSON objects, one a line. The markers are text, but content cannot leave its string; the stop
    # token stands where the answer's string ends.
    "json": Template(
        before={role: f'{{"role": "{role}", "content": "' for role in ROLES},
        after=dict.fromkeys(ROLES, '"}\n'),
        json_strings=True,
    ),
}


# Rendering


@dataclass
class Rendering:
    """Ids and their loss mask, which grow together."""

    tokenizer: object
    special_tokens: tuple[str, ...] = ()
    ids: list[int] = field(default_factory=list)
    loss_mask: list[float] = field(default_factory=list)

    def add(self, ids: Sequence[int], weight: float) -> None:
        self.ids += ids
        self.loss_mask += [weight] * len(ids)

    def add_content(self, text: str, weight: float) -> None:
        """Text from outside: never a special token."""
        self.add(self.tokenizer.encode(text), weight)

    def add_markup(self, markup: str, weight: float) -> None:
        """A template's own text, in which the template's special tokens are meant."""
        self.add(markup_ids(markup, self.special_tokens, self.tokenizer), weight)


@functools.lru_cache(maxsize=256)  # all conversations have the same few headers
def markup_ids(markup: str, special_tokens: tuple[str, ...], tokenizer) -> tuple[int, ...]:
    names = "|".join(re.escape(name) for name in special_tokens)
    ids: list[int] = []
    for part in re.split(f"({names})", markup):
        ids += [tokenizer.special(part)] if part in special_tokens else tokenizer.encode(part)
    return tuple(ids)


def render(
    messages: Sequence[Message], tokenizer, template: str = "chatml", train_on: str = "assistant"
) -> tuple[list[int], list[float]]:
    """Token ids and their loss mask: the message's weight where the token is supervised, else 0.

    `train_on` "assistant" supervises all that an assistant message says and its stop token, "last"
    that of the last one only, "all" everything. A document (role "text") is supervised whole and
    ends in end-of-text. Never supervised is the first token: nothing predicts it. Raises ValueError
    where the tokenizer lacks the template's special tokens.
    """
    if train_on not in TRAIN_ON:
        raise ValueError(f"train_on must be one of {', '.join(TRAIN_ON)}, not {train_on!r}")
    if [message.role for message in messages] == ["text"]:
        rendering = Rendering(tokenizer)
        rendering.add_content(messages[0].content, messages[0].weight)
        rendering.add([tokenizer.special(END_OF_TEXT)], messages[0].weight)
    else:
        rendering = render_turns(messages, tokenizer, TEMPLATES[template], train_on)
    rendering.loss_mask[:1] = [0] * len(rendering.loss_mask[:1])
    return rendering.ids, rendering.loss_mask


def render_turns(
    messages: Sequence[Message], tokenizer, form: Template, train_on: str
) -> Rendering:
    rendering, all_text = Rendering(tokenizer, form.special_tokens), train_on == "all"
    told = [message for message in messages[:1] if message.role == "system"]
    if form.system and not any(system.content or not system.tools for system in told):
        system = Message("system", form.system, tools=told[0].tools if told else ())
        messages = [system, *messages[len(told) :]]
    most = max((message.weight for message in messages), default=0) if all_text else 0
    rendering.add_markup(form.begin, most)
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    trained = answers[-1:] if train_on == "last" else answers
    previous = None
    for i, message in enumerate(messages):
        around = message.weight if all_text else 0  # header and closing
        inside = message.weight if all_text or i in trained else 0
        rendering.add_markup(form.opening(previous, message.role), around)
        rendering.add_content(form.write(form.text(message)), inside)
        if message.role == "assistant":
            rendering.add([tokenizer.special(form.stop)], inside)
        rendering.add_markup(form.after[message.role], around)
        previous = message.role
    return rendering


def render_prompt(
    messages: Sequence[Message], tokenizer, template: str = "chatml", role: str = "assistant"
) -> list[int]:
    """Ids up to where the next message begins: an exact prefix of `render` with that one."""
    form, previous = TEMPLATES[template], messages[-1].role if messages else None
    prompt = render_turns(messages, tokenizer, form, "assistant")
    prompt.add_markup(form.opening(previous, role), 0)
    return prompt.ids


# Reading records

ROLE_NAMES = {role: role for role in ROLES} | {"human": "user", "gpt": "assistant"}
ROLE_NAMES |= {"function_call": "assistant", "observation": "tool"}
ROLE_NAMES |= {"function": "tool", "developer": "system"}
FORMS = {  # the keys that make a form: those that may stand beside them
    ("messages",): ("system", "tools"),
    ("conversations",): ("system", "tools"),
    ("instruction", "output"): ("input", "system", "tools"),
    ("prompt", "completion"): ("system", "tools"),
    ("text",): (),
}
# What a turn may hold, under these names. Of its weights, the smallest counts.
ROLE, CONTENT = ("role", "from"), ("content", "value")
WEIGHT = ("weight", "loss_weight", "train", "loss")  # from 0 (false) to 1 (true)
INVERSE_WEIGHT = ("masked", "ignore", "ignored")  # of which 1 (true) is a weight of 0
TOOL_CALLS = ("tool_calls", "function_call")
REASONING = ("reasoning_content", "reasoning", "thinking")
ACCEPTED = "accepted: " + ", or ".join(" and ".join(form) for form in FORMS)


def given(values: dict, *keys: str) -> list[str]:
    """Those of the keys that say something: null and what is empty do not."""
    return [key for key in keys if key in values and values[key] not in (None, "", [], {})]


def form_of(record: dict) -> tuple[str, ...]:
    """The keys of the first form that the record has, else ValueError."""
    if not isinstance(record, dict):
        raise ValueError(f"a record must be an object, not {type(record).__name__}; {ACCEPTED}")
    for form in FORMS:
        if all(key in record for key in form):
            return form
    found = ", ".join(record)[:160] or "(none)"
    raise ValueError(f"unknown form of record, with the keys {found}; {ACCEPTED}")


def read_record(record: dict) -> list[Message]:
    """The conversation in a record of any of the FORMS. Beside turns, `system` is the system
    message's text, and `tools`, a list or its JSON text, belong to it. runtime/records.py makes
    these forms of others. Raises ValueError."""
    messages = read_any_form(record)
    roles = [message.role for message in messages]
    if "system" in roles[1:]:
        raise ValueError("a conversation has at most one system message, at its start")
    if "assistant" not in roles and "text" not in roles:
        raise ValueError("a conversation without an assistant turn: there is nothing to learn from")
    for message in messages:
        for text in (message.content, message.reasoning, *message.tool_calls, *message.tools):
            check_unicode(text)
    return messages


def read_any_form(record: dict) -> list[Message]:
    form = form_of(record)
    if form == ("text",):
        return [Message("text", text_of(record, "text"))]
    if len(form) == 1:
        if not isinstance(record[form[0]], list) or not record[form[0]]:
            raise ValueError(f'"{form[0]}" must be a list of messages')
        turns = [read_turn(turn) for turn in record[form[0]]]
    else:
        more = given(record, "input") if form[0] == "instruction" else []
        asked = [text_of(record, key) for key in (form[0], *more)]
        turns = [Message("user", "\n\n".join(filter(None, asked)))]
        turns += [Message("assistant", text_of(record, form[1]))]
    if given(record, "system"):
        turns.insert(0, Message("system", text_of(record, "system")))
    tools = parse_json("tools", record["tools"]) if given(record, "tools") else []
    if tools:
        tools = [parse_json("a tool", tool) for tool in (tools if type(tools) is list else [tools])]
        turns = turns if turns[0].role == "system" else [Message("system", ""), *turns]
        turns[0] = replace(turns[0], tools=tuple(map(to_json, tools)))
    return turns


def read_turn(turn: object) -> Message:
    keys = turn if isinstance(turn, dict) else {}
    role = next((keys[key] for key in ROLE if key in keys), None)
    content, calls = [key for key in CONTENT if key in keys][:1], given(keys, *TOOL_CALLS)[:1]
    if role is None or not (content or calls):
        found = ", ".join(keys)[:160] or type(turn).__name__
        raise ValueError(f'a message needs "role" and "content" (found {found})')
    if not isinstance(role, str) or role not in ROLE_NAMES:
        raise ValueError(f"unknown role {shown(role)}; roles are {', '.join(ROLE_NAMES)}")
    is_json = any(str(turn[key]).startswith(("{", "[")) for key in content)
    if role == "function_call" and is_json:  # ShareGPT's: the content is the call
        content, calls = [], content
    content = given(turn, *content) if calls else content
    text = "".join(text_of(turn, key) for key in content)
    reasoning = "".join(text_of(turn, key) for key in given(turn, *REASONING)[:1])
    calls = tuple(call for key in calls for call in read_calls(turn[key]))
    return Message(ROLE_NAMES[role], text, weight_of(turn), reasoning, calls)


def weight_of(turn: dict) -> float:
    """The smallest weight that a turn gives; 1 where it gives none."""
    weights = [1]
    for key in given(turn, *WEIGHT, *INVERSE_WEIGHT):
        check_weight(key, turn[key])
        weights.append(1 - turn[key] if key in INVERSE_WEIGHT else +turn[key])
    return min(weights)


def read_calls(calls: object) -> list[str]:
    """One call or a list: {"function": {"name", "arguments"}}, or without "function"."""
    calls, read = parse_json("tool calls", calls), []
    for call in calls if isinstance(calls, list) else [calls]:
        call = call.get("function") or call if isinstance(call, dict) else call
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise ValueError(f'a tool call needs "name" and "arguments", not {shown(call)}')
        arguments = parse_json("arguments", call.get("arguments") or {})
        read.append(to_json({"name": call["name"], "arguments": arguments}))
    return read


def parse_json(name: str, value: object) -> object:
    """The value of a JSON text; any other value as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise ValueError(f"{name} must be JSON, not {shown(value)}") from None


def to_json(value: object) -> str:
    """In the spelling of `tojson` in published chat templates."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def text_of(values: dict, key: str) -> str:
    """Content given as text, or as a list of parts with the key "text" or "value"."""
    content, texts = values[key], []
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f'"{key}" must be text, not {type(content).__name__}')
    for part in content:
        kind = part.get("type") or "text" if isinstance(part, dict) else type(part).__name__
        texts.append(part.get("text", part.get("value")) if kind == "text" else None)
        if not isinstance(texts[-1], str):
            raise ValueError(f'"{key}" as a list must hold text parts, not {shown(kind)}')
    return "".join(texts)


if __name__ == "__main__":
    from runtime.answers import show_conversations

    sys.exit(show_conversations())
