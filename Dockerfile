# The image of all machines of a cluster, head and workers, for cluster.yaml and configs/kuberay.yaml:
#
#     docker build --tag REGISTRY/textinv_ray:0.1.0 . && docker push REGISTRY/textinv_ray:0.1.0
#
# Ray and Python are those of constraints.txt. torch brings its CUDA libraries along, so the image without CUDA
# does; the machine has the driver.
FROM rayproject/ray:2.60.0-py311

ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RAY_USAGE_STATS_ENABLED=0 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    TOKENIZERS_PARALLELISM=false

# A job without --working-dir runs where its node was started: here, so `python jobs/invert_many.py` is found.
WORKDIR /home/ray/textinv_ray

# The packages first: this layer of gigabytes changes only with them.
COPY --chown=ray:users constraints.txt ./
RUN pip install --no-cache-dir --requirement constraints.txt

COPY --chown=ray:users . .
RUN pip install --no-cache-dir --constraint constraints.txt --editable '.[s3,gcs]'
