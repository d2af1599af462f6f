# One image for every process; the command says which one: `crewlog orchestrator`, `crewlog agent research`, …
FROM python:3.13-slim AS build
WORKDIR /src
COPY . .
# the embedded servers stay out: in containers Postgres and NATS are services of their own
RUN python -m venv /opt/crewlog && /opt/crewlog/bin/pip install --no-cache-dir ".[data,docs,mcp,fast]" pytest

FROM python:3.13-slim
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /var/lib/crewlog crewlog \
    && install -d -o crewlog -g crewlog /var/lib/crewlog/artifacts
COPY --from=build /opt/crewlog /opt/crewlog
ENV PATH=/opt/crewlog/bin:$PATH CREWLOG_HOME=/var/lib/crewlog PYTHONUNBUFFERED=1
USER crewlog
WORKDIR /var/lib/crewlog
VOLUME /var/lib/crewlog/artifacts
STOPSIGNAL SIGTERM
ENTRYPOINT ["crewlog"]
CMD ["--help"]
