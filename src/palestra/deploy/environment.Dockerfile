# The environment server: sandboxes, agent and grading; no torch.
# Any base with python3 (3.11 to 3.13) and pip will do.
ARG BASE_IMAGE=python:3.12
FROM ${BASE_IMAGE}

# For the server: git makes repositories of tasks, skopeo brings images where no engine does.
# Empty: the base has what is needed, and no package list is fetched.
ARG APT_PACKAGES="git skopeo"
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
ARG PALESTRA_REQUIREMENT
RUN python3 -m pip install --no-cache-dir "${PALESTRA_REQUIREMENT:-/opt/palestra}" \
    && ln -sfn "$(cd / && python3 -c 'from importlib.resources import files; print(files("palestra") / "deploy")')" \
               /opt/palestra/deploy

EXPOSE 11000
WORKDIR /workspace
