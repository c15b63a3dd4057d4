/** An authority with a server and a client certificate, made for one test run. */
import "reflect-metadata";
import * as x509 from "@peculiar/x509";

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };

export interface Pair {
  readonly cert: string;
  readonly key: string;
}

export interface TestAuthority {
  readonly ca: string;
  /** For 127.0.0.1. */
  readonly server: Pair;
  readonly client: Pair;
}

export async function makeAuthority(): Promise<TestAuthority> {
  const notBefore = new Date(Date.now() - 3_600_000);
  const notAfter = new Date(Date.now() + 86_400_000);
  const caKeys = await crypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
  const ca = await x509.X509CertificateGenerator.createSelfSigned({
    name: "CN=test authority",
    serialNumber: "01",
    notBefore,
    notAfter,
    signingAlgorithm: ALGORITHM,
    keys: caKeys,
    extensions: [new x509.BasicConstraintsExtension(true, 1, true)],
  });
  const issue = async (name: string, serialNumber: string, usage: x509.ExtendedKeyUsage): Promise<Pair> => {
    const keys = await crypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
    const extensions: x509.Extension[] = [
      new x509.ExtendedKeyUsageExtension([usage]),
      new x509.SubjectAlternativeNameExtension([{ type: "ip", value: "127.0.0.1" }]),
    ];
    const certificate = await x509.X509CertificateGenerator.create({
      subject: `CN=${name}`,
      issuer: ca.subject,
      serialNumber,
      notBefore,
      notAfter,
      signingAlgorithm: ALGORITHM,
      publicKey: keys.publicKey,
      signingKey: caKeys.privateKey,
      extensions,
    });
    const der = new Uint8Array(await crypto.subtle.exportKey("pkcs8", keys.privateKey));
    return { cert: certificate.toString("pem"), key: x509.PemConverter.encode(der, "PRIVATE KEY") };
  };
  return {
    ca: ca.toString("pem"),
    server: await issue("server", "02", x509.ExtendedKeyUsage.serverAuth),
    client: await issue("client", "03", x509.ExtendedKeyUsage.clientAuth),
  };
}
