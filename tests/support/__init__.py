"""What tests stand on: peers, proxies, fakes and clocks."""
