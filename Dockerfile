# selfpatch with all that it reads and writes.
#   docker build -t selfpatch .                            CUDA
#   docker build -t selfpatch --build-arg VARIANT=cpu .    CPU only
#   docker run --gpus all --shm-size 8g -v $PWD:/data -w /data selfpatch pretrain --data photos
FROM python:3.12-slim
ARG VARIANT=cuda
WORKDIR /opt/selfpatch
COPY pyproject.toml README.md LICENSE ./
COPY src src
# PyPI's torch for Linux is the CUDA build.
RUN if [ "$VARIANT" = cpu ]; then \
        pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch torchvision; \
    fi \
    && pip install --no-cache-dir '.[fast,tiff,export,embed,detect]'
# Loader processes share memory, and caches go to a folder that any user may write.
ENV XDG_CACHE_HOME=/tmp/cache
ENTRYPOINT ["selfpatch"]
CMD ["--help"]
