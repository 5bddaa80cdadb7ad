// A certified provider of OpenID Connect for test_oidc.py: node provider.mjs PORT PORTAL_URL KEY_FILE
// Anybody signs in by name, with any password. KEY_FILE has its private keys (JWKS); PORTAL_URL is the portal's public_url.
import fs from 'node:fs';
import { Provider } from 'oidc-provider';

const [, , port, portal, keyFile] = process.argv;
const issuer = `http://127.0.0.1:${port}`;
const people = {
  alice: { email: 'alice@example.org', email_verified: true, groups: ['mail admins'] },
  eve: { email: 'alice@example.org', email_verified: false },
};
const provider = new Provider(issuer, {
  clients: [{
    client_id: 'quarantine',
    client_secret: 'secret-secret',
    redirect_uris: [`${portal}/sign-in/oidc/company/callback`],
    post_logout_redirect_uris: [`${portal}/sign-in`],
    response_types: ['code'],
    grant_types: ['authorization_code'],
    backchannel_logout_uri: `${portal}/oidc/company/logout`,
    backchannel_logout_session_required: true,
  }],
  jwks: JSON.parse(fs.readFileSync(keyFile)),
  cookies: { keys: ['only for tests'] },
  claims: { openid: ['sub'], email: ['email', 'email_verified'], groups: ['groups'] },
  // Its own rule against requests to loopback addresses, where the portal is here.
  fetch: (url, options) => fetch(url, { ...options, dispatcher: undefined }),
  pkce: { required: () => true },
  features: {
    devInteractions: { enabled: true },
    rpInitiatedLogout: { enabled: true },
    backchannelLogout: { enabled: true },
  },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, ...people[id] }) }),
});
for (const event of ['backchannel.error', 'backchannel.success', 'server_error', 'grant.error']) {
  provider.on(event, (_, error) => console.log(event, error?.message ?? '', error?.cause ?? ''));
}
provider.listen(Number(port), '127.0.0.1', () => console.log('ready'));
