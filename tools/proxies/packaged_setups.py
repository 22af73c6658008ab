"""Set-ups with proxies of Debian and npm: each with its defaults, and with the lines that a guide recommends."""

from .setup import Program, Setup

__all__ = ["DEBIAN_SETUPS", "NODE_SETUPS"]

_APACHE = Program("apache2", "apache2", ("-d", "@FOLDER@", "-f", "@CONFIGURATION@", "-DFOREGROUND"))
_CADDY = Program("caddy", "caddy", ("run", "--adapter", "caddyfile", "--config", "@CONFIGURATION@"))
_H2O = Program("h2o", "h2o", ("-c", "@CONFIGURATION@"))
_HAPROXY = Program("haproxy", "haproxy", ("-db", "-f", "@CONFIGURATION@"))
_HITCH = Program("hitch", "hitch", ("--config=@CONFIGURATION@",))
_LIGHTTPD = Program("lighttpd", "lighttpd", ("-D", "-f", "@CONFIGURATION@"))
_NGHTTPX = Program("nghttpx", "nghttp2-proxy", ("--conf=@CONFIGURATION@",))
_NGINX = Program("nginx", "nginx-light", ("-p", "@FOLDER@", "-c", "@CONFIGURATION@", "-e", "stderr"))
_SQUID = Program("squid", "squid", ("-N", "-n", "squid@PORT@", "-f", "@CONFIGURATION@"))
_STUNNEL = Program("stunnel4", "stunnel4", ("@CONFIGURATION@",))
_TINYPROXY = Program("tinyproxy", "tinyproxy", ("-d", "-c", "@CONFIGURATION@"))
_VARNISH = Program(
    "varnishd",
    "varnish",
    ("-F", "-j", "none", "-n", "@FOLDER@/varnish", "-a", "127.0.0.1:@PORT@", "-f", "@CONFIGURATION@"),
)


def _node(package: str, *arguments: str) -> Program:
    return Program("node", package, (f"@NODE@/{package}.js", *arguments, "@PORT@", "@TARGET@"), "node")


_HTTP_PROXY = _node("http-proxy")
_MIDDLEWARE = _node("http-proxy-middleware")
_VITE = _node("vite", "@FOLDER@")
_WEBPACK = _node("webpack-dev-server")

DEBIAN_SETUPS = (
    Setup("nginx", "`proxy_pass` alone", _NGINX, "nginx.conf"),
    Setup("nginx-gzip", "`gzip` for all types, `X-Accel-Buffering` ignored", _NGINX, "nginx-gzip.conf"),
    Setup("nginx-guide", "the lines of docs/proxies/nginx.conf, HTTP/2", _NGINX, "nginx-guide.conf", scheme="https"),
    Setup(
        "tabs-http2",
        "the lines of docs/proxies/nginx.conf, WebSockets refused; eight tabs over HTTP/2",
        _NGINX,
        "nginx-tabs.conf",
        scheme="https",
        tabs=8,
    ),
    Setup("haproxy", "Debian's defaults", _HAPROXY, "haproxy.cfg"),
    Setup(
        "haproxy-guide", "the lines of docs/proxies/haproxy.cfg, HTTP/2", _HAPROXY, "haproxy-guide.cfg", scheme="https"
    ),
    Setup("apache", "`ProxyPass` alone", _APACHE, "apache.conf"),
    Setup("apache-deflate", "`DEFLATE` for all types, `ProxyPreserveHost`", _APACHE, "apache-deflate.conf"),
    Setup(
        "apache-guide",
        "`upgrade=websocket`, `flushpackets`, `ProxyPreserveHost`, HTTP/2",
        _APACHE,
        "apache-guide.conf",
        scheme="https",
    ),
    Setup("caddy", "`reverse_proxy` alone", _CADDY, "Caddyfile"),
    Setup("caddy-encode", "`encode gzip` for text/*", _CADDY, "Caddyfile-encode"),
    Setup("caddy-guide", "`flush_interval -1`, HTTP/2", _CADDY, "Caddyfile-guide", scheme="https"),
    Setup("squid", "before the server (`accel`)", _SQUID, "squid.conf"),
    Setup("squid-guide", "the same with `http_upgrade_request_protocols`", _SQUID, "squid-guide.conf"),
    Setup("squid-forward", "the browser's proxy, Debian's rules", _SQUID, "squid-forward.conf", forward=True),
    Setup(
        "squid-forward-guide", "the same, `CONNECT` to the app's port", _SQUID, "squid-forward-guide.conf", forward=True
    ),
    Setup("tinyproxy", "the browser's proxy", _TINYPROXY, "tinyproxy.conf", forward=True),
    Setup("varnish", "a backend alone", _VARNISH, "varnish.vcl"),
    Setup("varnish-guide", "`pipe` for WebSockets and event streams", _VARNISH, "varnish-guide.vcl"),
    Setup("lighttpd", "`proxy.server` alone", _LIGHTTPD, "lighttpd.conf"),
    Setup("lighttpd-guide", "`stream-response-body = 2`, `upgrade`", _LIGHTTPD, "lighttpd-guide.conf"),
    Setup("nghttpx", "defaults, HTTP/2", _NGHTTPX, "nghttpx.conf", scheme="https"),
    Setup("nghttpx-guide", "the same with `add-x-forwarded-for`", _NGHTTPX, "nghttpx-guide.conf", scheme="https"),
    Setup("h2o", "`proxy.reverse.url` alone", _H2O, "h2o.conf"),
    Setup("h2o-guide", "`preserve-host`, `websocket`, HTTP/2", _H2O, "h2o-guide.conf", scheme="https"),
    Setup("stunnel", "TLS alone", _STUNNEL, "stunnel.conf", scheme="https"),
    Setup("hitch", "TLS alone", _HITCH, "hitch.conf", scheme="https"),
    Setup("hitch-proxy", "the same with the PROXY protocol", _HITCH, "hitch-proxy.conf", scheme="https"),
)

NODE_SETUPS = (
    Setup("http-proxy", "defaults", _HTTP_PROXY, arguments=("{}",)),
    Setup("http-proxy-guide", "`ws`, `xfwd`", _HTTP_PROXY, arguments=('{"ws": true, "xfwd": true}',)),
    Setup("middleware", "`changeOrigin`, as in the README", _MIDDLEWARE, arguments=('{"changeOrigin": true}',)),
    Setup("middleware-guide", "`ws`, `xfwd`", _MIDDLEWARE, arguments=('{"ws": true, "xfwd": true}',)),
    Setup("vite", "`server.proxy`, a target alone", _VITE, arguments=("{}",)),
    Setup("vite-origin", "`changeOrigin`, `ws`", _VITE, arguments=('{"changeOrigin": true, "ws": true}',)),
    Setup("vite-guide", "`ws`, `xfwd`", _VITE, arguments=('{"ws": true, "xfwd": true}',)),
    Setup("webpack", "`devServer.proxy`, a target alone", _WEBPACK, arguments=("{}", "{}")),
    Setup("webpack-guide", "`ws`, `xfwd`", _WEBPACK, arguments=('{"ws": true, "xfwd": true}', "{}")),
    Setup(
        "webpack-guide-uncompressed",
        "`ws`, `xfwd`, `compress: false`",
        _WEBPACK,
        arguments=('{"ws": true, "xfwd": true}', '{"compress": false}'),
    ),
)
