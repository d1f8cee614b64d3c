"""Chat templates in Hugging Face's language, Jinja: ours written, theirs recognised.

A text is tokenized as a whole there. So bytes may be joined across the borders of a message, where
`render` keeps them apart, and the characters `<|im_end|>`, typed by a user, become the special
token. docs/formats.md has the counts.
"""

import contextlib
import hashlib
import json
import re
import sys
from pathlib import Path

from chat_template import TEMPLATES, Template
from hf.tokenizer_files import read_json
from runtime.console import log
from runtime.files import decode_utf8

# The SHA-256 of published chat templates that say what ours of this name says.
PUBLISHED = {
    "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": "smollm2",
    "55b2f4a26ac9ee719330a61a0c39d9e538b0e9322212f048326318cff4f8674a": "qwen2.5",
    "b48c47f6443892716176eb200bf4ef108f64e06ca26ed0fa8ebc0a4b3992fcb2": "llama3",
}
# The chat template in Jinja; {% generation %} marks what is supervised.
JINJA = """\
{%- set opening = OPENING -%}
{%- set closing = CLOSING -%}
{%- set previous = namespace(role="") -%}
{{- BEGIN -}}
{%- if (tools or SYSTEM) and messages[0].role != "system" -%}
{%- set messages = [{"role": "system", "content": SYSTEM}] + messages -%}
{%- endif -%}
{%- for message in messages -%}
{%- set said = namespace(text=message.content, tools=[]) -%}
{%- if message.tool_calls and not said.text -%}{%- set said.text = "" -%}{%- endif -%}
{%- if message.role not in closing or said.text is not string -%}
{{- raise_exception("a message needs text as its content, and one of the roles "
    ~ (closing | join(", "))) -}}
{%- endif -%}
{{- opening.get(previous.role ~ " " ~ message.role, opening[message.role]) -}}
{%- for call in message.tool_calls or [] -%}
{%- set call = call.function or call -%}
{%- set arguments = call.arguments if call.arguments is string else call.arguments | tojson -%}
{%- set said.text = said.text ~ ("\\n" if said.text else "") ~ (TOOL_CALL | replace("%s",
    '{"name": ' ~ (call.name | tojson) ~ ', "arguments": ' ~ arguments ~ '}')) -%}
{%- endfor -%}
{%- if message.reasoning_content -%}
{%- set said.text = (REASONING | replace("%s", message.reasoning_content)) ~ said.text -%}
{%- endif -%}
{%- if loop.first and tools -%}
{%- for tool in tools -%}
{%- set said.tools = said.tools + [tool | tojson] -%}
{%- endfor -%}
{%- set said.text = said.text ~ ("\\n\\n" if said.text else "")
    ~ (TOOLS | replace("%s", said.tools | join("\\n"))) -%}
{%- endif -%}
{%- set content = CONTENT -%}
{%- if message.role == "assistant" -%}
{%- generation -%}{{- content ~ STOP -}}{%- endgeneration -%}
{%- else -%}
{{- content -}}
{%- endif -%}
{{- closing[message.role] -}}
{%- set previous.role = message.role -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- opening.get(previous.role ~ " assistant", opening["assistant"]) -}}
{%- endif -%}
"""


def jinja(template: Template) -> str:
    """A template's data in the places of the capitals; a string of JSON means the same in Jinja."""
    keys = {
        key: key if isinstance(key, str) else f"{key[0] or ''} {key[1]}" for key in template.before
    }
    content = "said.text | trim" if template.trim else "said.text"
    values = {
        "OPENING": {keys[key]: text for key, text in template.before.items()},
        "CLOSING": template.after,
        "BEGIN": template.begin,
        "SYSTEM": template.system,
        "TOOL_CALL": template.tool_call,
        "REASONING": template.reasoning,
        "TOOLS": template.tools,
        "STOP": template.stop,
    }
    values = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    values["CONTENT"] = "(said.text | tojson)[1:-1]" if template.json_strings else content
    return re.sub("|".join(values), lambda name: values[name[0]], JINJA)


def find_template(folder: Path) -> str | None:
    """The name of the template that is the folder's chat template; None where it has none, or, as
    is then said, another one."""
    path, moved = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    text = read_json(path).get("chat_template") if path.is_file() else None
    if moved.is_file():  # to where transformers moves it
        text = decode_utf8(moved, 1, moved.read_bytes())
    if not text:
        return None
    text = text if isinstance(text, str) else json.dumps(text)  # several, by name
    known = PUBLISHED.get(hashlib.sha256(text.strip().encode("utf-8", "replace")).hexdigest())
    found = next((name for name, template in TEMPLATES.items() if jinja(template) == text), known)
    if found is None:
        names = ", ".join(TEMPLATES)
        with contextlib.redirect_stdout(sys.stderr):  # an answer may be all that is to be printed
            log(f"note: {folder}: its chat template is none of {names}; see --template")
    return found
