# The Python that CI tests with.
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
RUN python -m venv /opt/streamer
ENV PATH=/opt/streamer/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN pip install --constraint constraints.txt pip
COPY streamer streamer
RUN pip install --constraint constraints.txt --build-constraint constraints.txt .

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --create-home streamer
COPY --from=build /opt/streamer /opt/streamer
ENV PATH=/opt/streamer/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    STREAMER_SERVER__HOST=0.0.0.0
USER 10001
WORKDIR /home/streamer
EXPOSE 9464
# Alive, not ready: a pause at Segment or Kafka is no reason to start anew.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('STREAMER_SERVER__PORT', 9464)}/healthz\", timeout=4)"]
ENTRYPOINT ["streamer"]
CMD ["run"]
