# Valley behind vLLM's server, on NVIDIA GPUs: docs/how-to/serve_in_production.md
ARG VLLM=v0.32.0

FROM python:3.12-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY examples/configs examples/configs
COPY examples/accelerate examples/accelerate
COPY examples/mixtures examples/mixtures
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM vllm/vllm-openai:${VLLM}
# What the image has stays as vLLM tested it; only what lacks is added.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python3 -m pip freeze --exclude-editable >/tmp/constraints.txt \
    && python3 -m pip install --no-cache-dir --constraint /tmp/constraints.txt /wheels/*.whl \
    && rm /tmp/constraints.txt \
    && useradd --no-log-init --uid 10001 --home-dir /cache --create-home valley
# All that is written goes to /cache and /tmp, so that the rest can be mounted read-only.
ENV HF_HOME=/cache/huggingface \
    VLLM_CACHE_ROOT=/cache/vllm \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton \
    VLLM_NO_USAGE_STATS=1
USER 10001:10001
VOLUME /cache
EXPOSE 8000
# Loading and compiling a large model takes minutes.
HEALTHCHECK --interval=15s --timeout=5s --retries=3 --start-period=15m \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["valley", "serve", "--engine", "vllm", "--host", "0.0.0.0"]
CMD ["/checkpoint"]
