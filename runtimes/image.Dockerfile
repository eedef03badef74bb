# The image of a language for hosts of Open Runtimes; `executor image <language>` builds it. Build context: the
# language's folder and the executor. It serves the code in /mnt/code on port 3000, packed or not.
ARG WORKER
FROM ${WORKER}
ARG RUNTIME
ARG ENTRYPOINT

# Hosts copy code into folders of root's, and run the helpers of all languages as root.
USER root
RUN set -eu; \
    missing=; \
    for tool in bash tar; do command -v "$tool" >/dev/null || missing="$missing $tool"; done; \
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"; \
    if [ -n "$missing" ]; then \
      apt-get update; \
      apt-get install --yes --no-install-recommends $missing; \
      rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb; \
    fi; \
    mkdir -p /mnt/code /mnt/logs /mnt/telemetry /mnt/resources \
      /usr/local/build /usr/local/server/helpers

# The worker as the image below compiled it, where the executor looks for runtimes.
COPY runtime.toml /usr/local/lib/executor/runtimes/${RUNTIME}/runtime.toml
# A site has none.
RUN [ ! -d /usr/local/server/src ] || cp -a /usr/local/server/src "/usr/local/lib/executor/runtimes/$RUNTIME/src"
RUN mkdir -p /usr/local/server/src/function
# Where the language is, so that no start has to ask it.
ARG LOCATE
RUN [ -z "$LOCATE" ] || sh -c "$LOCATE" > "/usr/local/lib/executor/runtimes/$RUNTIME/located"
COPY helpers/ /usr/local/server/helpers/
COPY executor /usr/local/bin/executor
# A binary for another machine or a newer C library is found here, not at the first start.
RUN executor --version

# EXECUTOR_IMAGE_ENTRYPOINT: only a default, so the code's own function.toml wins over it.
ENV OPEN_RUNTIMES_SECRET=open_runtime_secret \
    OPEN_RUNTIMES_ENTRYPOINT=${ENTRYPOINT} \
    EXECUTOR_IMAGE_ENTRYPOINT=${ENTRYPOINT} \
    EXECUTOR_RUNTIME=${RUNTIME} \
    EXECUTOR_RUNTIMES=/usr/local/lib/executor/runtimes \
    EXECUTOR_DATA=/var/lib/executor \
    EXECUTOR_HOST=0.0.0.0 \
    EXECUTOR_PORT=3000
WORKDIR /usr/local/server
EXPOSE 3000
STOPSIGNAL SIGTERM
# Plain files in /mnt/code, as `docker run --volume $PWD/example:/mnt/code` puts them there, are served where they are.
CMD ["bash", "-c", "if [ -n \"$(ls -A /mnt/code)\" ] && ! ls -d /mnt/code/{.extracted,code.sqfs,code.tar,code.tar.gz,code.gz} 2>/dev/null | grep -q .; then exec executor run /mnt/code; fi; exec bash helpers/start.sh 'bash helpers/server.sh'"]
