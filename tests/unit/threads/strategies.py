"""Any thread, for property tests."""

import struct

from hypothesis import strategies as st

from harmonia.protocol.threads import (
    Flavor,
    FunctionCall,
    Reasoning,
    StructuredOutput,
    Text,
    ThreadData,
    ThreadTurn,
    TokenThreadData,
    TokenTurn,
    ToolResponse,
)

LARGEST = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]
texts = st.text(max_size=20)
roles = st.sampled_from(["user", "assistant", "system", "tool"]) | texts
flavors: st.SearchStrategy[Flavor] = st.sampled_from(["PerToken", "Normalized", "LastToken"])
weights = st.floats(-LARGEST, LARGEST, width=32)
fragments = st.one_of(
    st.builds(Text, text=texts),
    st.builds(Reasoning, text=texts),
    st.builds(FunctionCall, call_id=texts, name=texts, arguments=texts),
    st.builds(ToolResponse, content=texts, call_id=st.none() | texts),
    st.builds(StructuredOutput, raw_text=texts, parsed_json=texts, schema=texts),
)
contents = st.lists(fragments, max_size=4).map(tuple)
turns = st.builds(ThreadTurn, role=roles, content=contents, weight=weights, flavor=flavors)
threads = st.builds(ThreadData, turns=st.lists(turns, max_size=5).map(tuple), uuid=st.none() | texts)


@st.composite
def token_threads(draw: st.DrawFn) -> TokenThreadData:
    """Tokens with turns that follow each other, with gaps."""
    bounds = sorted(draw(st.lists(st.integers(0, 30), max_size=8)))
    spans = zip(bounds[::2], bounds[1::2], strict=False)
    turns = tuple(
        TokenTurn(role=draw(roles), start=a, stop=b, weight=draw(weights), flavor=draw(flavors), content=draw(contents))
        for a, b in spans
    )
    return TokenThreadData(token_ids=tuple(draw(st.lists(st.integers(0, 9), min_size=30, max_size=40))), turns=turns)
