# The trainer. BASE_IMAGE may be a Miles or slime image: what it has installed stays, and only
# what palestra lacks is added.
ARG BASE_IMAGE=python:3.12
FROM ${BASE_IMAGE}

# Empty: the base has what is needed, and no package list is fetched.
ARG APT_PACKAGES="git"
RUN if [ -n "$APT_PACKAGES" ]; then \
        apt-get update -qq \
        && DEBIAN_FRONTEND=noninteractive \
           apt-get install -y -qq --no-install-recommends $APT_PACKAGES \
        && rm -rf /var/lib/apt/lists/*; \
    fi

# pip reads these by itself; empty ones count as not set.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
# The container is the virtual environment, whatever a distribution thinks of that.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

COPY . /opt/palestra
# Empty on a base that trains by itself: palestra then brings its hooks, and no torch.
ARG PALESTRA_EXTRAS=train
ARG PALESTRA_REQUIREMENT
RUN requirement="${PALESTRA_REQUIREMENT:-/opt/palestra}" \
    && python3 -m pip install --no-cache-dir "$requirement${PALESTRA_EXTRAS:+[$PALESTRA_EXTRAS]}" \
    && ln -sfn "$(cd / && python3 -c 'from importlib.resources import files; print(files("palestra") / "deploy")')" \
               /opt/palestra/deploy

WORKDIR /workspace
# A base may come with a program that runs ours; the trainer's command stands alone.
ENTRYPOINT []
