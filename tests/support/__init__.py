"""The foundations of the tests: peers, proxies, fakes and clocks."""
