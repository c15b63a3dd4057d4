/**
 * A TLS 1.3 endpoint that lies: it presents any certificate bytes and signs with any key, which no library lets one
 * do. Just enough of RFC 8446 (X25519, TLS_AES_128_GCM_SHA256) to find out what the other side really checks.
 * Imported by tests only.
 */
import { Buffer } from "node:buffer";
import {
  createCipheriv,
  createDecipheriv,
  createHash,
  createHmac,
  createPublicKey,
  diffieHellman,
  generateKeyPairSync,
  type KeyObject,
  sign,
} from "node:crypto";
import type { Socket } from "node:net";

/** What the liar claims, and the key it has. */
export interface Claim {
  /** Certificate list as sent: DER or not. */
  readonly certificates: readonly Uint8Array[];
  readonly keyPem: string;
}

/** Runs the server's side on a connected socket. Resolves with the first application data, or rejects when cut off. */
export async function lieAsServer(socket: Socket, claim: Claim): Promise<string> {
  const wire = new Wire(socket);
  const hello = await wire.handshake();
  const { sessionId, share } = readClientHello(hello);
  const own = generateKeyPairSync("x25519");
  const keyShare = ext(51, cat(u16(29), vec16(rawX25519(own.publicKey))));
  const serverHello = message(
    2,
    cat(u16(0x0303), random(32), vec8(sessionId), u16(0x1301), [0], vec16(cat(ext(43, u16(0x0304)), keyShare))),
  );
  wire.sendPlain(serverHello);
  const keys = new Schedule(own.privateKey, share);
  keys.add(hello, serverHello);
  const traffic = keys.handshakeSecrets();
  wire.sealWith(traffic.server);
  wire.openWith(traffic.client);
  const send = (m: Buffer) => {
    wire.send(22, m);
    keys.add(m);
  };
  send(message(8, vec16(Buffer.alloc(0))));
  send(certificateMessage(claim.certificates));
  send(certificateVerify("server", keys.hash(), claim.keyPem));
  send(message(20, keys.finished(traffic.server)));
  const application = keys.applicationSecrets();
  const finished = await wire.handshake();
  if (finished[0] !== 20) throw new Error(`handshake message ${finished[0]} instead of Finished`);
  wire.openWith(application.client);
  wire.sealWith(application.server);
  return (await wire.application()).toString();
}

/** Runs the client's side. Resolves with the first application data of the server, or rejects when cut off. */
export async function lieAsClient(socket: Socket, claim: Claim): Promise<string> {
  const wire = new Wire(socket);
  const own = generateKeyPairSync("x25519");
  const extensions = cat(
    ext(43, vec8(u16(0x0304))),
    ext(10, vec16(u16(29))),
    ext(13, vec16(cat(u16(0x0403), u16(0x0804)))),
    ext(51, vec16(cat(u16(29), vec16(rawX25519(own.publicKey))))),
  );
  const hello = message(
    1,
    cat(u16(0x0303), random(32), vec8(random(32)), vec16(u16(0x1301)), vec8([0]), vec16(extensions)),
  );
  wire.sendPlain(hello);
  const serverHello = await wire.handshake();
  const keys = new Schedule(own.privateKey, readServerHello(serverHello));
  keys.add(hello, serverHello);
  const traffic = keys.handshakeSecrets();
  wire.openWith(traffic.server);
  for (;;) {
    const m = await wire.handshake();
    keys.add(m);
    if (m[0] === 20) break;
  }
  const application = keys.applicationSecrets();
  wire.sealWith(traffic.client);
  const send = (m: Buffer) => {
    wire.send(22, m);
    keys.add(m);
  };
  send(certificateMessage(claim.certificates));
  if (claim.certificates.length > 0) send(certificateVerify("client", keys.hash(), claim.keyPem));
  send(message(20, keys.finished(traffic.client)));
  wire.openWith(application.server);
  wire.sealWith(application.client);
  return (await wire.application()).toString();
}

/** Records in both directions, and handshake messages cut out of them. */
class Wire {
  readonly #socket: Socket;
  readonly #waiting: (() => void)[] = [];
  #bytes = Buffer.alloc(0);
  #messages = Buffer.alloc(0);
  #ended: Error | undefined;
  #seal: Sealer | undefined;
  #open: Sealer | undefined;

  constructor(socket: Socket) {
    this.#socket = socket;
    const wake = () => this.#waiting.splice(0).forEach((f) => f());
    const end = (why: string) => () => {
      this.#ended ??= new Error(why);
      wake();
    };
    socket.on("data", (d: Buffer) => {
      this.#bytes = Buffer.concat([this.#bytes, d]);
      wake();
    });
    socket.on("end", end("the other side closed the connection"));
    socket.on("close", end("the connection closed"));
    socket.on("error", end("the connection broke"));
  }

  sealWith(secret: Buffer): void {
    this.#seal = new Sealer(secret);
  }

  openWith(secret: Buffer): void {
    this.#open = new Sealer(secret);
  }

  sendPlain(m: Buffer): void {
    this.#socket.write(cat([22], u16(0x0303), vec16(m)));
  }

  send(type: number, bytes: Buffer): void {
    this.#socket.write(this.#seal!.seal(type, bytes));
  }

  /** The next handshake message with its header. Tickets that follow the handshake are skipped by application(). */
  async handshake(): Promise<Buffer> {
    for (;;) {
      if (this.#messages.length >= 4) {
        const length = 4 + this.#messages.readUIntBE(1, 3);
        if (this.#messages.length >= length) {
          const m = this.#messages.subarray(0, length);
          this.#messages = this.#messages.subarray(length);
          return m;
        }
      }
      const { type, content } = await this.#record();
      if (type === 22) this.#messages = Buffer.concat([this.#messages, content]);
    }
  }

  async application(): Promise<Buffer> {
    for (;;) {
      const { type, content } = await this.#record();
      if (type === 23) return content;
    }
  }

  async #record(): Promise<{ type: number; content: Buffer }> {
    for (;;) {
      const length = this.#bytes.length >= 5 ? 5 + this.#bytes.readUInt16BE(3) : Infinity;
      if (this.#bytes.length >= length) {
        const record = this.#bytes.subarray(0, length);
        this.#bytes = this.#bytes.subarray(length);
        if (record[0] === 20) continue; // change_cipher_spec, for middleboxes only
        const opened = record[0] === 23 ? this.#open!.open(record) : { type: record[0]!, content: record.subarray(5) };
        if (opened.type === 21) throw new Error(`alert ${opened.content[1]}`);
        return opened;
      }
      if (this.#ended) throw this.#ended;
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }
}

class Sealer {
  readonly #key: Buffer;
  readonly #iv: Buffer;
  #sequence = 0;

  constructor(secret: Buffer) {
    this.#key = expandLabel(secret, "key", Buffer.alloc(0), 16);
    this.#iv = expandLabel(secret, "iv", Buffer.alloc(0), 12);
  }

  seal(type: number, bytes: Buffer): Buffer {
    const inner = cat(bytes, [type]);
    const header = cat([23], u16(0x0303), u16(inner.length + 16));
    const cipher = createCipheriv("aes-128-gcm", this.#key, this.#nonce());
    cipher.setAAD(header);
    return cat(header, cipher.update(inner), cipher.final(), cipher.getAuthTag());
  }

  open(record: Buffer): { type: number; content: Buffer } {
    const decipher = createDecipheriv("aes-128-gcm", this.#key, this.#nonce());
    decipher.setAAD(record.subarray(0, 5));
    decipher.setAuthTag(record.subarray(-16));
    const inner = cat(decipher.update(record.subarray(5, -16)), decipher.final());
    let end = inner.length - 1;
    while (inner[end] === 0) end--;
    return { type: inner[end]!, content: inner.subarray(0, end) };
  }

  #nonce(): Buffer {
    const nonce = Buffer.from(this.#iv);
    nonce.writeUInt32BE((nonce.readUInt32BE(8) ^ this.#sequence++) >>> 0, 8);
    return nonce;
  }
}

/** The key schedule of RFC 8446 §7.1 for a handshake without PSK. */
class Schedule {
  readonly #transcript: Buffer[] = [];
  readonly #handshake: Buffer;

  constructor(own: KeyObject, peer: Uint8Array) {
    const spki = cat(Buffer.from("302a300506032b656e032100", "hex"), peer);
    const shared = diffieHellman({
      privateKey: own,
      publicKey: createPublicKey({ key: spki, format: "der", type: "spki" }),
    });
    const early = hmac(Buffer.alloc(32), Buffer.alloc(32));
    this.#handshake = hmac(derive(early, "derived", sha256(Buffer.alloc(0))), shared);
  }

  add(...messages: Buffer[]): void {
    this.#transcript.push(...messages);
  }

  hash(): Buffer {
    return sha256(Buffer.concat(this.#transcript));
  }

  handshakeSecrets(): { client: Buffer; server: Buffer } {
    return this.#pair(this.#handshake, "hs");
  }

  applicationSecrets(): { client: Buffer; server: Buffer } {
    const master = hmac(derive(this.#handshake, "derived", sha256(Buffer.alloc(0))), Buffer.alloc(32));
    return this.#pair(master, "ap");
  }

  finished(secret: Buffer): Buffer {
    return hmac(expandLabel(secret, "finished", Buffer.alloc(0), 32), this.hash());
  }

  #pair(secret: Buffer, kind: "hs" | "ap"): { client: Buffer; server: Buffer } {
    const h = this.hash();
    return { client: derive(secret, `c ${kind} traffic`, h), server: derive(secret, `s ${kind} traffic`, h) };
  }
}

function certificateMessage(certificates: readonly Uint8Array[]): Buffer {
  const list = cat(...certificates.map((c) => cat(u24(c.length), c, u16(0))));
  return message(11, cat([0], u24(list.length), list));
}

function certificateVerify(side: "server" | "client", transcript: Buffer, keyPem: string): Buffer {
  const text = cat(Buffer.alloc(64, 0x20), Buffer.from(`TLS 1.3, ${side} CertificateVerify\0`), transcript);
  return message(15, cat(u16(0x0403), vec16(sign("sha256", text, keyPem))));
}

function readClientHello(m: Buffer): { sessionId: Buffer; share: Buffer } {
  let at = 4 + 2 + 32;
  const sessionId = m.subarray(at + 1, at + 1 + m[at]!);
  at += 1 + sessionId.length;
  at += 2 + m.readUInt16BE(at);
  at += 1 + m[at]!;
  const shares = extension(m.subarray(at + 2), 51).subarray(2);
  for (let i = 0; i < shares.length; i += 4 + shares.readUInt16BE(i + 2)) {
    if (shares.readUInt16BE(i) === 29) return { sessionId, share: shares.subarray(i + 4, i + 36) };
  }
  throw new Error("the client offered no X25519 key");
}

function readServerHello(m: Buffer): Buffer {
  const at = 4 + 2 + 32 + 1 + m[38]! + 2 + 1 + 2;
  return extension(m.subarray(at), 51).subarray(4);
}

function extension(list: Buffer, type: number): Buffer {
  for (let i = 0; i < list.length; i += 4 + list.readUInt16BE(i + 2)) {
    if (list.readUInt16BE(i) === type) return list.subarray(i + 4, i + 4 + list.readUInt16BE(i + 2));
  }
  throw new Error(`extension ${type} is missing`);
}

function derive(secret: Buffer, label: string, hash: Buffer): Buffer {
  return expandLabel(secret, label, hash, 32);
}

function expandLabel(secret: Buffer, label: string, context: Buffer, length: number): Buffer {
  const info = cat(u16(length), vec8(Buffer.from("tls13 " + label)), vec8(context));
  return hmac(secret, cat(info, [1])).subarray(0, length);
}

function rawX25519(key: KeyObject): Buffer {
  return Buffer.from(key.export({ format: "der", type: "spki" })).subarray(-32);
}

function hmac(key: Uint8Array, data: Uint8Array): Buffer {
  return createHmac("sha256", key).update(data).digest();
}

function sha256(data: Uint8Array): Buffer {
  return createHash("sha256").update(data).digest();
}

function random(n: number): Buffer {
  return Buffer.from(crypto.getRandomValues(new Uint8Array(n)));
}

type Bytes = Uint8Array | readonly number[];

function cat(...parts: readonly Bytes[]): Buffer {
  return Buffer.concat(parts.map((p) => (p instanceof Uint8Array ? p : Buffer.from(p))));
}

function u16(n: number): Buffer {
  return Buffer.from([n >> 8, n & 255]);
}

function u24(n: number): Buffer {
  return Buffer.from([n >> 16, (n >> 8) & 255, n & 255]);
}

function vec8(bytes: Bytes): Buffer {
  return cat([bytes.length], bytes);
}

function vec16(bytes: Bytes): Buffer {
  return cat(u16(bytes.length), bytes);
}

function ext(type: number, bytes: Bytes): Buffer {
  return cat(u16(type), vec16(bytes));
}

function message(type: number, body: Buffer): Buffer {
  return cat([type], u24(body.length), body);
}
