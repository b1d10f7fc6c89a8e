# JupyterLab on the notebooks, without a GPU: docker build -t ivon-lora-lite . && docker run -p 8888:8888 ivon-lora-lite
FROM python:3.13-slim
RUN apt-get update && apt-get install -y --no-install-recommends make git && rm -rf /var/lib/apt/lists/*
WORKDIR /ivon-lora-lite
COPY . .
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu HF_HUB_OFFLINE=1
RUN make setup
EXPOSE 8888
CMD ["make", "lab", "LAB=--ip=0.0.0.0 --no-browser"]
