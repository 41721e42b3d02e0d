#!/bin/sh
# Sets the number of clients of `docker compose up`: writes docker-compose.override.yml, which compose reads by itself.
#   docker/clients.sh 8          8 clients (1 to 32)
#   docker/clients.sh 2 --gpu    2 clients, each with its own GPU
#   docker/clients.sh 4          the number in docker-compose.yml again; removes the file
set -eu

most=32
written=4 # the number in docker-compose.yml
mark='# Made by docker/clients.sh'
file=$(dirname "$0")/../docker-compose.override.yml

die() {
    echo "error: $1" >&2
    exit 2
}

clients=${1:-}
gpu=${2:-}
case $clients in
'' | *[!0-9]* | 0*) die "the number of clients is '$clients'; give one from 1 to $most, as in: docker/clients.sh 8" ;;
esac
[ "$clients" -le "$most" ] || die "$clients clients are more than $most; give a number from 1 to $most."
[ -z "$gpu" ] || [ "$gpu" = --gpu ] || die "'$gpu' is unknown; there is only --gpu, after the number of clients."
if [ -e "$file" ] && ! head -n 1 "$file" | grep -q "^$mark"; then
    die "docker-compose.override.yml was not made by this script. Move it away first."
fi

# A number on each line, for the clients that docker-compose.yml does not have.
added() {
    seq $((written + 1)) "$clients"
}

coordinator() {
    echo "  init:"
    echo "    environment: {CLIENTS: \"$clients\"}"
    if [ "$clients" -gt "$written" ]; then
        echo "    volumes:"
        added | sed 's|.*|      - site-&:/sites/client-&\n      - state-&:/sites/client-&/state|'
        echo "  server:"
        echo "    networks:"
        added | sed 's|.*|      - site-&|'
    fi
    echo "  run:"
    echo "    environment: {CLIENTS: \"$clients\"}"
}

client() {
    if [ "$1" -gt "$clients" ]; then
        echo "  client-$1: {profiles: [left-out]}"
        return
    fi
    if [ "$1" -gt "$written" ]; then
        echo "  client-$1:"
        echo "    extends: {file: docker/client.yml, service: client}"
        echo "    pull_policy: never"
        echo "    depends_on: {server: {condition: service_healthy}}"
        echo "    networks: [site-$1]"
        echo "    volumes: [\"site-$1:/site:ro\", \"state-$1:/site/state\"]"
    elif [ -n "$gpu" ]; then
        echo "  client-$1:"
    fi
    if [ -n "$gpu" ]; then
        device="{driver: nvidia, device_ids: [\"$(($1 - 1))\"], capabilities: [gpu]}"
        echo "    deploy: {resources: {reservations: {devices: [$device]}}}"
    fi
}

# Docker's own choice of subnets would run out before 32 networks.
network() {
    echo "  site-$1:"
    echo "    internal: true"
    echo "    driver_opts: {com.docker.network.bridge.inhibit_ipv4: \"true\"}"
    echo "    ipam: {config: [{subnet: \"\${SITE_SUBNETS:-10.203.45}.$((($1 - 1) * 8))/29\"}]}"
}

everything() {
    echo "$mark $clients $gpu"
    echo "services:"
    coordinator
    for number in $(seq 1 "$most"); do
        if [ "$number" -le "$clients" ] || [ "$number" -le "$written" ]; then client "$number"; fi
    done
    if [ "$clients" -gt "$written" ]; then
        echo "networks:"
        for number in $(added); do network "$number"; done
        echo "volumes:"
        added | sed 's|.*|  site-&:\n  state-&:|'
    fi
}

if [ "$clients" -eq "$written" ] && [ -z "$gpu" ]; then
    rm -f "$file"
else
    everything >"$file.part"
    mv "$file.part" "$file"
fi
echo "$clients clients$([ -z "$gpu" ] || echo ", each with a GPU"). Next: docker compose up --build"
