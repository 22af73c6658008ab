// The types of the browser client. docs/reference/protocol.md describes the commands and the frames.

export type NatsState = "connected" | "disconnected";
export type Action = "subscribe" | "unsubscribe" | "ping" | "publish" | "request";

/**
 * The stored messages that come before the live ones: none, all, the last one of each subject, or the last ones of the
 * pattern.
 */
export type From = "new" | "all" | "last_per_subject" | { last: number };

export interface Command {
  action?: Action;
  subjects?: string[];
  id?: string | number;
  session?: string;
  after?: string;
  from?: From;
}

/** The form of `data` that isn't JSON: a string, sent as its UTF-8, or the base64 of bytes. */
export type Encoding = "text" | "base64";

export type MessageHeaders = Record<string, string[]>;

export interface PublishOptions {
  /** Wait until a stream has the message. The client repeats it until then, for 100 s at most. */
  ack?: boolean;
  /** The bridge must allow their names. */
  headers?: MessageHeaders;
  encoding?: Encoding;
  /** By this a stream knows a repeated message. By default a random one, of each `publish` with `ack`. */
  msg_id?: string;
}

export interface RequestOptions {
  /** Seconds to wait for an answer; the bridge has a limit of its own. */
  timeout?: number;
  /** The bridge must allow their names. */
  headers?: MessageHeaders;
  encoding?: Encoding;
}

/** A publish or a request, for `send`. */
export interface PublishCommand extends PublishOptions, RequestOptions {
  action: "publish" | "request";
  subject: string;
  data?: any;
  id?: string | number;
}

export interface Welcome {
  type: "welcome";
  success: boolean;
  data: string;
  /** The id of the session. Only its client may know it. */
  session: string;
  protocol: number;
  features: string[];
  /** Seconds within which the bridge sends at least one frame. */
  heartbeat: number;
  nats: NatsState;
}

export interface Reply {
  type: "reply";
  id?: string | number;
  action?: Action;
  success: boolean;
  code?: string;
  message: string;
  subjects?: string[];
  /** True if the bridge's NATS server has the subscription already. */
  active?: boolean;
  /** True if a stream has the messages, so that the subscriptions go on after an absence. */
  resumable?: boolean;
  /** The subjects for which it does, if it doesn't for all. */
  resumable_subjects?: string[];
  /** True if nothing is missing. */
  recovered?: boolean;
  /** That of a request. */
  subject?: string;
  /** The answer to a request, as a message has it, with `encoding` and `headers`. */
  data?: any;
  encoding?: Encoding;
  headers?: MessageHeaders;
  /** The stream that has a published message. */
  stream?: string;
  /** The number of the message in the stream. */
  sequence?: number;
  /** True if the stream had the message already. */
  duplicate?: boolean;
  /** The reason for which JetStream hasn't stored a message. */
  description?: string;
  /** The code of the service that has answered with an error. */
  service_code?: string;
  /** Milliseconds after which the same command may succeed. */
  retry?: number;
}

/** The answer to a request. */
export interface Answer<Data = any> extends Reply {
  subject: string;
  data: Data;
}

/** The stored messages of a subscription, before its live ones. */
export interface Recovery {
  /** The number of stored messages. */
  replayed: number;
  /** True if nothing is missing. */
  recovered: boolean;
}

export interface CaughtUp extends Recovery {
  type: "caught_up";
  subjects: string[];
  /** An id, as messages have. */
  position: string;
}

export interface Message<Data = any> {
  type: "message";
  subject: string;
  /** The wildcard by which the message came, if any. */
  pattern?: string;
  data: Data;
  /** Missing if the payload is JSON. */
  encoding?: Encoding;
  headers?: MessageHeaders;
  /** The position in the stream, for `after`. Missing if no stream has the message. */
  id?: string;
  /** Present if the message marks a key as deleted. */
  operation?: "delete" | "purge";
}

export interface Gap {
  type: "gap";
  subjects: string[];
  /** The number of messages; `null` if it isn't known. */
  lost: number | null;
  reason: "nats_reconnect" | "slow_consumer" | "internal" | "unknown" | "reset" | "expired" | "backlog";
}

export interface Unsubscribed {
  type: "unsubscribed";
  subjects: string[];
  code: string;
  message: string;
}

export interface Status {
  type: "status";
  nats: NatsState;
}

export interface Heartbeat {
  type: "heartbeat";
  id?: string;
}

export interface Close {
  type: "close";
  code: number;
  reason: string;
  reconnect: boolean;
  /** Milliseconds until the client should reconnect. */
  retry?: number;
}

export type Frame = Welcome | Reply | Message | CaughtUp | Gap | Unsubscribed | Status | Heartbeat | Close;

export type Transport = "websocket" | "sse";

export interface Options {
  /** URL of the bridge; by default the folder of the module, if the bridge serves it. Its query goes with each request. */
  url?: string | URL;
  /** The transports to try, the best one first; by default `websocket` and `sse`. */
  transports?: Transport[];
  /**
   * Called before the first connection, by `reconnect`, when the bridge answers that the client isn't authenticated
   * (any more), and when a proxy asks for a login. It may renew a cookie. The result is added to the query of every
   * request.
   */
  credentials?: () => Promise<Record<string, string> | URLSearchParams | string | void>;
  /** Tabs with the same key share one event stream. Use the id of the user. */
  share?: string;
  /** Milliseconds until the client falls back to the next transport; 3,000 by default. */
  timeout?: number;
  /** Milliseconds until a better transport is tried again; 300,000 by default. */
  retryBetter?: number;
  /** The class to use instead of the global one, such as that of the package `ws` in Node. */
  WebSocket?: unknown;
  /** The class to use instead of the global one, such as that of the package `eventsource` in Node. */
  EventSource?: unknown;
  /** The function to use instead of the global one. */
  fetch?: typeof fetch;
}

/** The state of the connection. */
export interface ClientStatus {
  state: "connecting" | "subscribing" | "connected" | "waiting" | "closed";
  /** The transport in use, or the one that the client tries. */
  transport: Transport;
  /** True if the event stream is shared with other tabs. */
  shared?: boolean;
  /** The bridge's connection to NATS. */
  nats?: NatsState;
  /** The reason why it isn't the first transport; empty if it is. */
  why: string;
  /** The reason why there is no connection, or why a subscription has no reply. */
  reason?: string;
  /** Milliseconds that the client waits before it reconnects. */
  retry?: number;
  /** The close code with which the client ended. */
  code?: number;
}

export interface SubscribeOptions {
  /** The messages to begin with; `new` by default. The bridge must have history for anything else. */
  from?: From;
  /** Begin behind the message with this id. If that can't be had, there is a `gap`, and `from` counts. */
  after?: string;
}

/**
 * An error with the `code` of a failed reply, or with one of the client: `closed`, `disconnected`, or `blocked` if
 * something on the way has refused a POST.
 */
export interface NatsError extends Error {
  code: string;
  subjects?: string[];
  /** The reason for which JetStream hasn't stored a message. */
  description?: string;
  /** The code of the service that has answered with an error. */
  serviceCode?: string;
  /** Milliseconds after which the same command may succeed. */
  retry?: number;
}

export interface Subscription<Data = any> extends AsyncIterable<Message<Data>> {
  readonly pattern: string;
  /** Resolves with the bridge's reply, or rejects with a `NatsError`. You may ignore it. */
  readonly ready: Promise<Reply>;
  /** Resolves when the live messages begin, or rejects as `ready` does. You may ignore it. */
  readonly caughtUp: Promise<Recovery>;
  /** Iterate over the messages from now on. Leaving the loop unsubscribes, unless a callback or another loop remains. */
  [Symbol.asyncIterator](): AsyncGenerator<Message<Data>, void, void>;
  /** End this subscription. Others with the same pattern remain. */
  unsubscribe(): void;
}

export interface ClientEvents {
  status: ClientStatus;
  /** Messages were missed, or may have been. The reason is `reconnect` if the client itself was disconnected. */
  gap: Gap | (Omit<Gap, "reason" | "lost"> & { lost: null; reason: "reconnect" });
  /** Stored messages were received, for instance those of an absence, and the live ones begin. */
  caught_up: CaughtUp;
  /** The bridge has refused or ended these subscriptions. */
  unsubscribed: Unsubscribed;
  /** The connection has ended, and the client doesn't reconnect. */
  close: { code?: number; reason: string; final: boolean };
  /** Each frame that was received. */
  frame: Frame;
}

export type ClientEvent<Detail> = Event & { readonly detail: Detail };

export interface Client extends Omit<EventTarget, "addEventListener" | "removeEventListener"> {
  readonly status: ClientStatus;
  /** The first frame of the current session. */
  readonly welcome: Welcome | null | undefined;

  /**
   * Follow a pattern. `onended` is called once: with an error if the bridge has refused or ended the subscription,
   * without one if the page has ended it.
   */
  subscribe<Data = any>(
    pattern: string,
    callback?: ((data: Data, message: Message<Data>) => void) | null,
    onended?: ((error?: NatsError) => void) | null,
  ): Subscription<Data>;
  /** Follow a pattern from a place in the stream that has its messages. */
  subscribe<Data = any>(
    pattern: string,
    options: SubscribeOptions,
    callback?: ((data: Data, message: Message<Data>) => void) | null,
    onended?: ((error?: NatsError) => void) | null,
  ): Subscription<Data>;

  /**
   * Publish a message; `data` is any JSON. Resolves when NATS has it, or with `ack` when a stream has it, or rejects with
   * a `NatsError`. Without `ack` it is sent once, and only if there is a connection.
   */
  publish(subject: string, data?: any, options?: PublishOptions): Promise<Reply>;

  /**
   * Send a request, once, after waiting up to 10 s for a connection. Resolves with its first answer, or rejects with a
   * `NatsError`.
   */
  request<Data = any>(subject: string, data?: any, options?: RequestOptions): Promise<Answer<Data>>;

  /** Send a command as it is, and return its reply, also a failed one. Its effect isn't restored after a reconnect. */
  send(command: Command | PublishCommand): Promise<Reply>;

  /**
   * Connect again in a new session, after asking for the credentials: after a login or a logout, for instance. The
   * subscriptions stay. A stream that tabs share has a new session for all of them.
   */
  reconnect(): void;

  /** End all subscriptions, and the connection. */
  close(): void;

  addEventListener<Type extends keyof ClientEvents>(
    type: Type,
    listener: ((event: ClientEvent<ClientEvents[Type]>) => void) | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<Type extends keyof ClientEvents>(
    type: Type,
    listener: ((event: ClientEvent<ClientEvents[Type]>) => void) | null,
    options?: boolean | EventListenerOptions,
  ): void;
}

/** Connect to a bridge, and stay connected until the client is closed. */
export function connect(options?: Options): Client;
