vcl 4.1;
backend default { .host = "127.0.0.1"; .port = "@TARGET@"; }
sub vcl_recv {
    if (req.http.Upgrade ~ "(?i)websocket" || req.url ~ "^/nats/events") {
        return (pipe);
    }
}
sub vcl_pipe {
    if (req.http.Upgrade) {
        set bereq.http.Upgrade = req.http.Upgrade;
        set bereq.http.Connection = req.http.Connection;
    }
}
