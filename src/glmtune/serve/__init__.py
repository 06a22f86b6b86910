"""The server of `glmtune serve`: OpenAI's HTTP interface in front of one generation engine.

`schema` reads a request; `service` encodes it and hands it to the `worker`, whose thread owns the engine;
`answer` turns the tokens that come back into text; `chat` and `completions` write them in OpenAI's form;
`api` joins them, behind `guard`.
"""
