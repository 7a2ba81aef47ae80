#!/bin/sh
# Becomes the app's Python, with CANN's environment where CANN is installed.
for script in /usr/local/Ascend/cann/set_env.sh /usr/local/Ascend/ascend-toolkit/set_env.sh; do
    if [ -f "$script" ]; then
        . "$script"
        break
    fi
done
exec /opt/venv/bin/python "$@"
