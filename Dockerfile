# glmtune for training, chat and the server. Not built by the project's own checks: see docs/serve.md.
#   docker build -t glmtune .
# For a processor alone, a smaller image:
#   docker build -t glmtune --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
FROM python:3.12-slim

# Triton, which quantised weights on a card use, compiles with a C compiler
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

ARG TORCH_INDEX=https://pypi.org/simple
WORKDIR /opt/glmtune
COPY constraints.txt ./
# in a layer of its own: it is by far the largest, and changes seldom
RUN pip install --no-cache-dir -c constraints.txt --extra-index-url "$TORCH_INDEX" torch
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
COPY examples ./examples
COPY recipes ./recipes
RUN pip install --no-cache-dir -c constraints.txt --extra-index-url "$TORCH_INDEX" '.[serve,parquet,bitsandbytes]'

# files that it writes belong to this user: run with --user "$(id -u)" for your own
RUN useradd --create-home --uid 1000 glmtune && mkdir /data && chown glmtune /data
ENV HF_HOME=/data/.cache/huggingface \
    GLMTUNE_CACHE=/data/.cache/glmtune \
    PYTHONUNBUFFERED=1
USER glmtune
WORKDIR /data
EXPOSE 8000
# signals reach the program itself, so that `docker stop` ends open answers with an error of their own
ENTRYPOINT ["glmtune"]
CMD ["--help"]
