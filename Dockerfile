# mambair on a CPU. Not built where it was written, for want of an engine.
#
#   docker build -t mambair .
#   docker run --rm --network none -v "$PWD:/pictures" --user "$(id -u):$(id -g)" mambair upscale photo.jpg
FROM python:3.12-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm
# libgomp: the threads of the native kernel are those of torch.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home mambair && mkdir /cache && chown mambair /cache && chmod 1777 /cache
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu \
    && pip install --no-cache-dir "$(echo /wheels/*.whl)[web]" && rm -r /wheels \
    && mambair doctor | grep -q 'available  native kernel'
ENV MAMBAIR_CACHE=/cache
USER mambair
WORKDIR /pictures
ENTRYPOINT ["mambair"]
CMD ["--help"]
