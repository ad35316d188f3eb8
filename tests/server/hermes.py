"""A folder of the model in the box whose template shows tools, as Qwen's and Hermes' do."""

from __future__ import annotations

import shutil
from pathlib import Path

from headrace import box

TEMPLATE = """{{ bos_token }}{%- if tools %}
<|system|>
{% for tool in tools %}
{{ tool | tojson }}
{% endfor %}
Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call>.<|end|>
{% endif %}
{%- for message in messages %}
<|{{ 'user' if message.role == 'tool' else message.role }}|>
{% if message.content %}
{{ message.content | trim }}
{%- endif %}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}
<|end|>
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}
"""


def make(folder: Path, template: str = TEMPLATE) -> Path:
    """Copies the small model to `folder`."""
    shutil.copytree(box.path("tiny-draft"), folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder
