"""Blocks of addresses with a special purpose, which no image on the public internet has.

`ipaddress` knows the registries as of the release of Python, whose `is_global` therefore differs
between versions. It also calls some special blocks global, such as those of relays. This table
decides in every version alike.
"""

import ipaddress

_BLOCKS = (
  # IANA IPv4 Special-Purpose Address Registry, without blocks inside of others.
  '0.0.0.0/8',  # This network.
  '10.0.0.0/8',  # Private.
  '100.64.0.0/10',  # Shared by customers of a provider; also services of Alibaba Cloud.
  '127.0.0.0/8',  # This machine.
  '169.254.0.0/16',  # Link-local; also the metadata of most clouds.
  '172.16.0.0/12',  # Private.
  '192.0.0.0/24',  # IETF protocols; also the metadata of Oracle Cloud.
  '192.0.2.0/24',  # Documentation.
  '192.31.196.0/24',  # AS112.
  '192.52.193.0/24',  # Automatic multicast tunneling.
  '192.88.99.0/24',  # Relays of 6to4.
  '192.168.0.0/16',  # Private.
  '192.175.48.0/24',  # AS112.
  '198.18.0.0/15',  # Benchmarks.
  '198.51.100.0/24',  # Documentation.
  '203.0.113.0/24',  # Documentation.
  '224.0.0.0/4',  # Multicast.
  '240.0.0.0/4',  # Reserved, and broadcast.
  '168.63.129.16/32',  # Services of Azure for its machines, on an address that looks public.
  # IANA IPv6 Special-Purpose Address Registry, without blocks inside of others. Addresses of some
  # blocks embed an IPv4 address, which would be reached through a gateway.
  '::/96',  # Unspecified, this machine, and IPv4-compatible.
  '::ffff:0:0/96',  # IPv4-mapped.
  '::ffff:0:0:0/96',  # IPv4-translated.
  '64:ff9b::/96',  # NAT64.
  '64:ff9b:1::/48',  # NAT64 of a local network.
  '100::/64',  # Discard.
  '100:0:0:1::/64',  # Dummy prefix.
  '2001::/23',  # IETF protocols, such as Teredo, benchmarks and ORCHID.
  '2001:db8::/32',  # Documentation.
  '2002::/16',  # 6to4.
  '2620:4f:8000::/48',  # AS112.
  '3fff::/20',  # Documentation.
  '5f00::/16',  # Segment routing.
  'fc00::/7',  # Private; also the metadata of AWS and Google Cloud.
  'fe80::/10',  # Link-local.
  'fec0::/10',  # Site-local.
  'ff00::/8',  # Multicast.
)
_NETWORKS = tuple(ipaddress.ip_network(block) for block in _BLOCKS)


def contain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
  """Return whether an address is in a block with a special purpose."""
  return any(address in network for network in _NETWORKS)
