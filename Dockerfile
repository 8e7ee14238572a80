# CPU image; for GPUs take a CUDA base image with Python 3.11 to 3.13 and leave the index of torch out.
FROM python:3.12-slim
ENV OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
WORKDIR /opt/segmentation
COPY . .
RUN pip install "setuptools>=77.0.3,<81" "wheel>=0.45" "pip<26.3" \
    && pip install . \
    && pip install --require-hashes --no-deps --no-build-isolation --use-pep517 -r requirements/no_deps.txt \
    && useradd --create-home --uid 1000 user
USER 1000
WORKDIR /home/user
ENTRYPOINT ["mss-train"]
CMD ["--help"]
